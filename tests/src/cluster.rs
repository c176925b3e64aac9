//! A cluster in the hub: etcd, kube-apiserver and kube-controller-manager, all real.
//!
//! Nodes are Node objects (no kubelet is needed), Pods are objects whose status a test writes, and
//! EndpointSlices are either written directly or made by the real slice controller from Pods.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::api::Api;
use crate::cache::{self, Version};
use crate::certs::{self, Authority};
use crate::cleanup::Folder;
use crate::process::Process;
use crate::topology::{HUB_V4, Hub, Node, SERVICE_CIDR};

/// The port of the API server, as on real control planes.
pub const API_PORT: u16 = 6443;
/// etcd and the API server need seconds; a busy machine gets more.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Users of the laboratory's static token file, by role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Member of `system:masters`.
    Admin,
    /// `system:kube-proxy`, whose rights are those of the bootstrap role.
    KubeProxy,
    /// `system:kube-controller-manager`.
    ControllerManager,
}

impl User {
    fn token(self) -> &'static str {
        match self {
            User::Admin => "laboratory-admin",
            User::KubeProxy => "laboratory-kube-proxy",
            User::ControllerManager => "laboratory-controller-manager",
        }
    }
}

/// A running cluster. Stops when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The test's own client, with all rights.
    pub api: Api,
    authority: Authority,
    // Dropped in this order: the API server before its store.
    controller_manager: Process,
    api_server: Process,
    _etcd: Process,
    _data: Folder,
    folder: Folder,
}

impl Cluster {
    /// Starts a cluster in the hub and waits until it serves and its controllers run.
    pub fn start(hub: &Hub) -> Result<Cluster> {
        let api_server_path = cache::kubernetes("kube-apiserver", Version::V1_34)?;
        let controller_manager_path = cache::kubernetes("kube-controller-manager", Version::V1_34)?;
        let folder = Folder::create("cluster")?;
        let data = Folder::create_in_memory("etcd")?;
        let authority = Authority::create(folder.path())?;
        certs::token_keys(folder.path())?;

        let etcd = start_etcd(hub, &folder, &data)?;
        let mut api_server = start_api_server(hub, &folder, &authority, &api_server_path)?;
        let pem = authority.certificate_pem()?;
        let api = Api::new(hub.netns(), &direct_url(), &pem, User::Admin.token())?;
        api_server.until("the API server is ready", START_LIMIT, || {
            // The namespace and the default ServiceCIDR are made after /readyz answers.
            Ok(api
                .find("/api/v1/namespaces/default/services/kubernetes")
                .ok()
                .flatten())
        })?;

        let kubeconfig = write_kubeconfig(
            &folder.join("controller-manager.kubeconfig"),
            &direct_url(),
            &authority,
            User::ControllerManager.token(),
        )?;
        let mut controller_manager =
            start_controller_manager(hub, &folder, &kubeconfig, &controller_manager_path)?;
        controller_manager.until("the ServiceAccount controller works", START_LIMIT, || {
            api.find("/api/v1/namespaces/default/serviceaccounts/default")
        })?;
        Ok(Cluster {
            api,
            authority,
            controller_manager,
            api_server,
            _etcd: etcd,
            _data: data,
            folder,
        })
    }

    /// The URL of the API server's own address.
    pub fn url(&self) -> String {
        direct_url()
    }

    /// The authority that signed the API server's certificate.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The folder with logs, keys and kubeconfigs; gone with the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Freezes (SIGSTOP) or thaws the API server: it vanishes without closing a connection.
    pub fn freeze_api_server(&self, frozen: bool) -> Result<()> {
        self.api_server
            .signal(if frozen { libc::SIGSTOP } else { libc::SIGCONT })
    }

    /// Freezes or thaws the controllers, so that hand-written slices stay as they are.
    pub fn freeze_controllers(&self, frozen: bool) -> Result<()> {
        self.controller_manager
            .signal(if frozen { libc::SIGSTOP } else { libc::SIGCONT })
    }

    /// A kubeconfig for a user of the token file.
    pub fn kubeconfig(&self, user: User) -> Result<PathBuf> {
        self.kubeconfig_with(&direct_url(), user.token())
    }

    /// A kubeconfig for a server URL (the Service address `https://10.96.0.1`, say) and any token.
    pub fn kubeconfig_with(&self, url: &str, token: &str) -> Result<PathBuf> {
        let path = self
            .folder
            .join(format!("{}.kubeconfig", crate::cleanup::number()));
        write_kubeconfig(&path, url, &self.authority, token)
    }

    /// Creates a namespace and waits until its `default` ServiceAccount exists, as Pods need.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        self.api.create(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        )?;
        crate::wait::until("the namespace's ServiceAccount", START_LIMIT, || {
            self.api.find(&format!(
                "/api/v1/namespaces/{name}/serviceaccounts/default"
            ))
        })?;
        Ok(())
    }

    /// Creates the Node object of a node, Ready, with both InternalIPs, its Pod ranges, and
    /// `labels` besides the host name's.
    pub fn create_node(&self, node: &Node, labels: &[(&str, &str)]) -> Result<Value> {
        let mut all = json!({"kubernetes.io/hostname": node.name(), "kubernetes.io/os": "linux"});
        for (key, value) in labels {
            all[*key] = json!(value);
        }
        let ranges = node.pod_ranges();
        self.api
            .create(&json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name(), "labels": all},
                "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": node.v4().to_string()},
                        {"type": "InternalIP", "address": node.v6().to_string()},
                        {"type": "Hostname", "address": node.name()},
                    ],
                    "conditions": [{"type": "Ready", "status": "True", "reason": "Laboratory", "message": ""}],
                },
            }))
            .with_context(|| format!("creating Node {}", node.name()))
    }

    /// A ServiceAccount token from the TokenRequest subresource, an hour long. `audiences` empty means the API server's own;
    /// `pod` (a Pod's name in the same namespace, with that ServiceAccount) binds it, which brings the node claim.
    pub fn token(
        &self,
        namespace: &str,
        service_account: &str,
        audiences: &[&str],
        pod: Option<&str>,
    ) -> Result<String> {
        let mut spec = json!({"expirationSeconds": 3600, "audiences": audiences});
        if let Some(pod) = pod {
            spec["boundObjectRef"] = json!({"kind": "Pod", "apiVersion": "v1", "name": pod});
        }
        let path =
            format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token");
        let request =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let answer = self.api.call(hyper::Method::POST, &path, Some(request))?;
        Ok(answer["status"]["token"]
            .as_str()
            .context("the API server gave no token")?
            .to_owned())
    }
}

fn direct_url() -> String {
    format!("https://{HUB_V4}:{API_PORT}")
}

fn start_etcd(hub: &Hub, folder: &Folder, data: &Folder) -> Result<Process> {
    let arguments = [
        format!("--data-dir={}", data.join("data").display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
        "--initial-cluster=default=http://127.0.0.1:2380".into(),
        "--log-level=warn".into(),
    ];
    Process::start(
        "etcd",
        hub.netns().command("etcd", arguments),
        &folder.join("etcd.log"),
    )
}

fn start_api_server(
    hub: &Hub,
    folder: &Folder,
    authority: &Authority,
    program: &Path,
) -> Result<Process> {
    let users = [
        (User::Admin, "laboratory-admin", "\"system:masters\""),
        (User::KubeProxy, "system:kube-proxy", ""),
        (
            User::ControllerManager,
            "system:kube-controller-manager",
            "",
        ),
    ];
    let tokens: String = users
        .iter()
        .map(|(user, name, groups)| format!("{},{name},{name},{groups}\n", user.token()))
        .collect();
    std::fs::write(folder.join("tokens.csv"), tokens)?;
    let names = [
        "DNS:kubernetes",
        "DNS:kubernetes.default",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default.svc.cluster.local",
        "IP:10.77.0.1",
        "IP:fd77::1",
        "IP:10.96.0.1",
        "IP:127.0.0.1",
    ];
    let serving = authority.issue("kube-apiserver", &names)?;
    let at = |name: &str| folder.join(name).display().to_string();
    let arguments = [
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--secure-port={API_PORT}"),
        "--bind-address=0.0.0.0".into(),
        format!("--advertise-address={HUB_V4}"),
        format!("--tls-cert-file={}", serving.certificate.display()),
        format!("--tls-private-key-file={}", serving.key.display()),
        format!("--cert-dir={}", folder.path().display()),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", at("sa.pub")),
        format!("--service-account-signing-key-file={}", at("sa.key")),
        format!("--token-auth-file={}", at("tokens.csv")),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--authorization-mode=Node,RBAC".into(),
        "--allow-privileged=true".into(),
        // Pods of the laboratory use images that nobody pulls.
        "--profiling=false".into(),
    ];
    Process::start(
        "kube-apiserver",
        hub.netns().command(&program.to_string_lossy(), arguments),
        &folder.join("kube-apiserver.log"),
    )
}

fn start_controller_manager(
    hub: &Hub,
    folder: &Folder,
    kubeconfig: &Path,
    program: &Path,
) -> Result<Process> {
    let arguments = [
        format!("--kubeconfig={}", kubeconfig.display()),
        "--controllers=endpointslice,serviceaccount,namespace".into(),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
        format!("--cert-dir={}", folder.path().display()),
        format!(
            "--service-account-private-key-file={}",
            folder.join("sa.key").display()
        ),
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
        "--concurrent-service-endpoint-syncs=10".into(),
        // Slices follow Pods at once; batching is not what is being tested here.
        "--endpointslice-updates-batch-period=0s".into(),
    ];
    Process::start(
        "kube-controller-manager",
        hub.netns().command(&program.to_string_lossy(), arguments),
        &folder.join("kube-controller-manager.log"),
    )
}

fn write_kubeconfig(path: &Path, url: &str, authority: &Authority, token: &str) -> Result<PathBuf> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "laboratory", "cluster": {"server": url, "certificate-authority": authority.certificate()}}],
        "users": [{"name": "laboratory", "user": {"token": token}}],
        "contexts": [{"name": "laboratory", "context": {"cluster": "laboratory", "user": "laboratory"}}],
        "current-context": "laboratory",
    });
    std::fs::write(path, serde_json::to_vec_pretty(&config)?)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path.to_owned())
}
