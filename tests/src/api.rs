//! A plain client of the API server for tests: JSON objects in and out, many requests at a time.
//!
//! It works from anywhere in this process although the server listens in the hub's namespace: the
//! client's threads stand there. Functions block; call them from ordinary threads.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow, bail};
use futures::StreamExt as _;
use hyper::{Method, Request};
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::netns::{Netns, move_this_thread};

/// Requests under way at once: enough to keep one API server busy on two cores, far below its own
/// limit of 200 writes.
const PARALLEL: usize = 32;

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    /// Method.
    pub method: Method,
    /// Path with query.
    pub path: String,
    /// Body, if any. With [`Method::PATCH`] a JSON merge patch.
    pub body: Option<Value>,
}

/// The client.
pub struct Api {
    runtime: Runtime,
    client: Client,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// A client for the server at `url`, which is reached from `netns`, whose certificate is
    /// signed by `authority` (PEM), and which knows `token`.
    pub fn new(netns: &Netns, url: &str, authority: &str, token: &str) -> Result<Api> {
        let name = netns.name().to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("api")
            // Later requests would silently go to the wrong namespace, so there is no going on.
            .on_thread_start(move || {
                move_this_thread(&name).expect("the hub's namespace lives as long as its client")
            })
            .enable_all()
            .build()?;
        let mut config =
            kube::Config::new(url.parse().with_context(|| format!("{url} is no URL"))?);
        let certificates: Result<Vec<Vec<u8>>> = {
            use rustls::pki_types::pem::PemObject as _;
            rustls::pki_types::CertificateDer::pem_slice_iter(authority.as_bytes())
                .map(|certificate| Ok(certificate?.to_vec()))
                .collect()
        };
        config.root_cert = Some(certificates.context("reading the authority's certificate")?);
        config.auth_info.token = Some(token.to_owned().into());
        let client = {
            let _entered = runtime.enter();
            // Two features of rustls could each bring a provider; the workspace means ring. A second
            // call finds it installed already.
            let _ = rustls::crypto::ring::default_provider().install_default();
            Client::try_from(config)?
        };
        Ok(Api { runtime, client })
    }

    /// Sends all `calls`, 32 at a time and in no particular order; answers are in the order of the
    /// calls.
    pub fn call_all(&self, calls: Vec<Call>) -> Vec<Result<Value>> {
        let client = self.client.clone();
        // Spawned, so that it is the runtime's threads that connect.
        let all = self.runtime.spawn(async move {
            futures::stream::iter(calls.into_iter().map(|call| {
                let client = client.clone();
                async move { send(client, call).await }
            }))
            .buffered(PARALLEL)
            .collect::<Vec<_>>()
            .await
        });
        match self.runtime.block_on(all) {
            Ok(answers) => answers,
            Err(error) => vec![Err(anyhow!(error))],
        }
    }

    /// Sends one request.
    pub fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let call = Call {
            method,
            path: path.to_owned(),
            body,
        };
        self.call_all(vec![call])
            .pop()
            .unwrap_or_else(|| bail!("no answer"))
    }

    /// Reads an object or a list.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None)
    }

    /// Reads an object; `None` when it does not exist.
    pub fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path) {
            Ok(object) => Ok(Some(object)),
            Err(error) if status_of(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates an object at the place that its apiVersion, kind and namespace name.
    pub fn create(&self, object: &Value) -> Result<Value> {
        self.call(Method::POST, &collection(object)?, Some(object.clone()))
    }

    /// Creates many objects at once. The first error ends it, after all requests were sent.
    pub fn create_all(&self, objects: &[Value]) -> Result<Vec<Value>> {
        let calls: Result<Vec<Call>> = objects
            .iter()
            .map(|object| {
                Ok(Call {
                    method: Method::POST,
                    path: collection(object)?,
                    body: Some(object.clone()),
                })
            })
            .collect();
        self.call_all(calls?).into_iter().collect()
    }

    /// Creates each object, or replaces the one that is there.
    pub fn put_all(&self, objects: &[Value]) -> Result<()> {
        let calls: Result<Vec<Call>> = objects
            .iter()
            .map(|object| {
                Ok(Call {
                    method: Method::POST,
                    path: collection(object)?,
                    body: Some(object.clone()),
                })
            })
            .collect();
        let mut there = Vec::new();
        for (object, answer) in objects.iter().zip(self.call_all(calls?)) {
            match answer {
                Ok(_) => (),
                Err(error) if status_of(&error) == Some(409) => {
                    there.push(Call {
                        method: Method::PUT,
                        path: path(object)?,
                        body: Some(object.clone()),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        for answer in self.call_all(there) {
            answer?;
        }
        Ok(())
    }

    /// Has the API server judge what applying an object would do, and do nothing.
    pub fn dry_run(&self, object: &Value) -> Result<Value> {
        let path = format!(
            "{}?dryRun=All&fieldManager=laboratory&force=true",
            path(object)?
        );
        self.call(Method::PATCH, &path, Some(object.clone()))
    }

    /// Merge-patches the object at `path` (append `/status` for its status).
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        self.call(Method::PATCH, path, Some(patch.clone()))
    }

    /// Deletes the object at `path`, at once (no grace period); no error when it is not there.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.delete_all(&[path.to_owned()])
    }

    /// Deletes many objects.
    pub fn delete_all(&self, paths: &[String]) -> Result<()> {
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        let calls = paths
            .iter()
            .map(|path| Call {
                method: Method::DELETE,
                path: path.clone(),
                body: Some(body.clone()),
            })
            .collect();
        for answer in self.call_all(calls) {
            match answer {
                Err(error) if status_of(&error) != Some(404) => return Err(error),
                _ => (),
            }
        }
        Ok(())
    }
}

/// The HTTP status in an error of this client.
pub fn status_of(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// The path of an object: `/api/v1/namespaces/shop/services/web`.
pub fn path(object: &Value) -> Result<String> {
    let name = object["metadata"]["name"]
        .as_str()
        .context("the object has no name")?;
    Ok(format!("{}/{name}", collection(object)?))
}

/// The path of the collection an object belongs to: `/api/v1/namespaces/shop/services`.
pub fn collection(object: &Value) -> Result<String> {
    let version = object["apiVersion"]
        .as_str()
        .context("the object has no apiVersion")?;
    let kind = object["kind"].as_str().context("the object has no kind")?;
    let root = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    let plural = plural(kind);
    Ok(if cluster_scoped().contains(kind) {
        format!("{root}/{plural}")
    } else {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default");
        format!("{root}/namespaces/{namespace}/{plural}")
    })
}

fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.as_str() {
        "endpoints" => kind,
        _ if kind.ends_with("cy") || kind.ends_with("ry") => {
            format!("{}ies", &kind[..kind.len() - 1])
        }
        _ if kind.ends_with('s') => format!("{kind}es"),
        _ => format!("{kind}s"),
    }
}

fn cluster_scoped() -> BTreeSet<&'static str> {
    BTreeSet::from([
        "Namespace",
        "Node",
        "ClusterRole",
        "ClusterRoleBinding",
        "PriorityClass",
        "CustomResourceDefinition",
        "ServiceCIDR",
        "IPAddress",
        "TokenReview",
        "SubjectAccessReview",
    ])
}

async fn send(client: Client, call: Call) -> Result<Value> {
    let content = if call.method == Method::PATCH && call.path.contains("fieldManager=") {
        // Server-side apply; JSON is YAML.
        "application/apply-patch+yaml"
    } else if call.method == Method::PATCH {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let body = match &call.body {
        Some(body) => serde_json::to_vec(body)?,
        None => Vec::new(),
    };
    let request = Request::builder()
        .method(call.method.clone())
        .uri(&call.path)
        .header("content-type", content)
        .body(body)?;
    // The cause stays reachable by downcast for `status_of`.
    client.request::<Value>(request).await.map_err(|error| {
        anyhow::Error::new(error).context(format!("{} {}", call.method, call.path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_names_its_path() {
        let paths = [
            (
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}}),
                "/api/v1/namespaces/shop/services/web",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}),
                "/api/v1/nodes/a",
            ),
            (
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "x"}}),
                "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/x",
            ),
        ];
        for (object, expected) in paths {
            assert_eq!(path(&object).unwrap(), expected);
        }
    }
}
