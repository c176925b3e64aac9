//! API objects from files: JSON or YAML, several documents in a file, `List`s. No cluster needed.

use crate::field::BadObject;
use crate::said::{Collection, Said};
use crate::trim::{self, Object};
use ipnet::IpNet;
use model::endpoint::EndpointSlice;
use model::service::Service;
use model::view::{Change, Node};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// How often followed files are looked at.
const POLL: Duration = Duration::from_secs(1);
/// Largest file that is read: a whole cluster of 10,000 Services is below 200 MB.
const FILE_BYTES: u64 = 512 << 20;

/// Something in the manifests that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file or directory could not be read.
    #[error("{}: {error}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is neither JSON nor YAML.
    #[error("{}: document {document} is not {format}: {why}", .path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Which of its documents, from 1.
        document: usize,
        /// `YAML` or `JSON`.
        format: &'static str,
        /// What the parser says.
        why: String,
    },
    /// An object of a kind that matters, with a field that cannot be understood.
    #[error("{}: document {document}: {bad}", .path.display())]
    Object {
        /// Which file.
        path: PathBuf,
        /// Which of its documents, from 1.
        document: usize,
        /// What is wrong.
        bad: BadObject,
    },
}

/// What the manifests hold. Of an object that is there twice, the last one counts.
#[derive(Debug, Default)]
pub struct Manifests {
    /// All Services.
    pub services: Vec<Service>,
    /// All EndpointSlices.
    pub slices: Vec<EndpointSlice>,
    /// All Nodes.
    pub nodes: Vec<Node>,
    /// ServiceCIDRs; `None`: the manifests hold no such object.
    pub service_cidrs: Option<Vec<IpNet>>,
    /// `config.conf` of ConfigMap `kube-system/kube-proxy`.
    pub proxy_config: Option<String>,
    /// What could not be used.
    pub errors: Vec<ManifestError>,
}

impl Manifests {
    /// As changes to a view: the whole content, then [`Change::Complete`].
    pub fn into_changes(self) -> Vec<Change> {
        let mut changes: Vec<Change> = self.nodes.into_iter().map(Change::Node).collect();
        changes.extend(self.service_cidrs.map(Change::ServiceCidrs));
        changes.push(Change::Replace {
            services: self.services,
            slices: self.slices,
        });
        changes.push(Change::Complete);
        changes
    }
}

/// Reads files, and the `.json`, `.yaml` and `.yml` files of directories (not of their
/// subdirectories), in order of their names. What cannot be used is in [`Manifests::errors`].
pub fn read(paths: &[PathBuf]) -> Manifests {
    let mut found = Manifests::default();
    let mut services = BTreeMap::new();
    let mut slices = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    let mut cidrs = BTreeMap::new();
    for path in files(paths, &mut found.errors) {
        let documents = match documents(&path) {
            Ok(documents) => documents,
            Err(error) => {
                found.errors.push(error);
                continue;
            }
        };
        for (number, document) in documents {
            let mut objects = Vec::new();
            flatten(document, &mut objects, 0);
            for value in objects {
                match trim::object(&value) {
                    Ok(Some(Object::Service(s))) => {
                        services.insert(s.name.clone(), s);
                    }
                    Ok(Some(Object::Slice(s))) => {
                        slices.insert(s.name.clone(), s);
                    }
                    Ok(Some(Object::Node(n))) => {
                        nodes.insert(n.name.clone(), n);
                    }
                    Ok(Some(Object::ServiceCidr(name, ranges))) => {
                        cidrs.insert(name, ranges);
                    }
                    Ok(Some(Object::ProxyConfig(config))) => found.proxy_config = config,
                    Ok(None) => {}
                    Err(bad) => found.errors.push(ManifestError::Object {
                        path: path.clone(),
                        document: number,
                        bad,
                    }),
                }
            }
        }
    }
    found.services = services.into_values().collect();
    found.slices = slices.into_values().collect();
    found.nodes = nodes.into_values().collect();
    found.service_cidrs = (!cidrs.is_empty()).then(|| cidrs.into_values().flatten().collect());
    found
}

/// Follows the files: says everything at once, and again whenever a file's content, time or name
/// changed. Ends when nobody listens any more. Files that cannot be read leave the last good
/// content in place and are reported.
pub async fn follow(paths: Vec<PathBuf>, said: mpsc::Sender<Said>) {
    let mut last = None;
    loop {
        let look = paths.clone();
        let stamp = tokio::task::spawn_blocking(move || stamps(&look))
            .await
            .ok();
        if stamp != last || last.is_none() {
            let look = paths.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || read(&look)).await else {
                return;
            };
            last = stamp;
            if !say(found, &said).await {
                return;
            }
        } else if said.send(Said::Alive(Collection::Services)).await.is_err()
            || said.send(Said::Alive(Collection::Slices)).await.is_err()
        {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn say(mut found: Manifests, said: &mpsc::Sender<Said>) -> bool {
    let mut all = Vec::new();
    let errors = std::mem::take(&mut found.errors);
    if errors.is_empty() {
        all.push(Said::ProxyConfig(found.proxy_config.take()));
        all.extend(found.into_changes().into_iter().map(Said::Change));
        all.push(Said::Alive(Collection::Services));
        all.push(Said::Alive(Collection::Slices));
    } else {
        // A file that is half written must not make its Services look deleted.
        let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
        all.push(Said::Lost(Collection::Services, why.join("; ")));
    }
    for one in all {
        if said.send(one).await.is_err() {
            return false;
        }
    }
    true
}

type Stamp = (PathBuf, Option<SystemTime>, u64);

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    files(paths, &mut Vec::new())
        .into_iter()
        .map(|path| {
            let meta = std::fs::metadata(&path).ok();
            let time = meta.as_ref().and_then(|m| m.modified().ok());
            (path, time, meta.map_or(0, |m| m.len()))
        })
        .collect()
}

fn files(paths: &[PathBuf], errors: &mut Vec<ManifestError>) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        match std::fs::read_dir(path).and_then(|d| d.collect::<Result<Vec<_>, _>>()) {
            Ok(entries) => {
                let mut inside: Vec<PathBuf> = entries
                    .into_iter()
                    .map(|e| e.path())
                    .filter(|p| {
                        let extension = p.extension().and_then(|e| e.to_str()).unwrap_or("");
                        ["json", "yaml", "yml"].contains(&extension) && p.is_file()
                    })
                    .collect();
                inside.sort();
                all.extend(inside);
            }
            Err(error) => errors.push(ManifestError::File {
                path: path.clone(),
                error,
            }),
        }
    }
    all
}

/// The documents of a file with their numbers from 1; empty ones left out.
fn documents(path: &Path) -> Result<Vec<(usize, Value)>, ManifestError> {
    let file = |error| ManifestError::File {
        path: path.to_path_buf(),
        error,
    };
    let meta = std::fs::metadata(path).map_err(file)?;
    // A pipe can be read once only; the second reading would say that every Service is gone.
    if !meta.is_file() {
        return Err(file(std::io::Error::other("not a regular file")));
    }
    let size = meta.len();
    if size > FILE_BYTES {
        return Err(file(std::io::Error::other(format!(
            "{size} bytes are more than {FILE_BYTES}"
        ))));
    }
    let bytes = std::fs::read(path).map_err(file)?;
    let json = path.extension().is_some_and(|e| e == "json");
    let format = if json { "JSON" } else { "YAML" };
    let syntax = |document: usize, why: String| ManifestError::Syntax {
        path: path.to_path_buf(),
        document,
        format,
        why,
    };
    let text = String::from_utf8(bytes).map_err(|e| syntax(1, e.to_string()))?;
    let mut all = Vec::new();
    let mut add = |number: usize, value: Result<Value, String>| -> Result<(), ManifestError> {
        match value {
            Ok(Value::Null) => Ok(()),
            Ok(value @ Value::Object(_)) => {
                all.push((number, value));
                Ok(())
            }
            Ok(_) => Err(syntax(number, "it is no object with fields".into())),
            Err(why) => Err(syntax(number, why)),
        }
    };
    if json {
        let stream = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        for (i, value) in stream.enumerate() {
            add(i + 1, value.map_err(|e| e.to_string()))?;
        }
    } else {
        for (i, document) in serde_yaml_ng::Deserializer::from_str(&text).enumerate() {
            add(
                i + 1,
                Value::deserialize(document).map_err(|e| e.to_string()),
            )?;
        }
    }
    Ok(all)
}

/// The objects of a `List` (or `ServiceList`, …), else the object itself.
fn flatten(mut value: Value, into: &mut Vec<Value>, depth: u8) {
    let text = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string()
    };
    let (kind, version) = (text("kind"), text("apiVersion"));
    let items = match kind.strip_suffix("List") {
        Some(_) if depth < 8 => value.get_mut("items").and_then(Value::as_array_mut),
        _ => None,
    };
    let Some(items) = items.map(std::mem::take) else {
        into.push(value);
        return;
    };
    for mut item in items {
        // The API server leaves kind and version out of the items of a typed list.
        if let (Some(of), Some(fields)) = (kind.strip_suffix("List"), item.as_object_mut())
            && !of.is_empty()
        {
            fields.entry("kind").or_insert_with(|| of.into());
            fields
                .entry("apiVersion")
                .or_insert_with(|| version.as_str().into());
        }
        flatten(item, into, depth + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n";

    #[test]
    fn several_documents_lists_json_and_unknown_kinds() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "a.yaml",
            &format!(
                "---\n{WEB}---\n# nothing\n---\napiVersion: apps/v1\nkind: Deployment\nspec: {{x: [1]}}\n"
            ),
        );
        write(
            dir.path(),
            "b.json",
            r#"{"apiVersion":"v1","kind":"List","items":[
                {"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-1"},"addressType":"IPv4","endpoints":[]},
                {"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}]}
              {"apiVersion":"v1","kind":"ServiceList","items":[{"metadata":{"name":"bare"}}]}"#,
        );
        write(dir.path(), "README.md", "not: [a manifest");
        let found = read(&[dir.path().to_path_buf()]);
        assert!(found.errors.is_empty(), "{:?}", found.errors);
        assert_eq!(
            (found.services.len(), found.slices.len(), found.nodes.len()),
            (2, 1, 1)
        );
        let changes = found.into_changes();
        assert_eq!(changes.last(), Some(&Change::Complete));
    }

    #[test]
    fn what_is_not_yaml_is_named_with_file_and_document() {
        let dir = tempfile::tempdir().unwrap();
        let bad = write(
            dir.path(),
            "bad.yaml",
            &format!("{WEB}---\na: [1, 2\nb: }}\n"),
        );
        let found = read(std::slice::from_ref(&bad));
        let text = found.errors[0].to_string();
        assert!(text.contains("bad.yaml: document 2 is not YAML"), "{text}");
        let prose = write(dir.path(), "prose.yaml", "hello world\n");
        assert!(
            read(&[prose]).errors[0]
                .to_string()
                .contains("document 1 is not YAML")
        );
        let binary = dir.path().join("binary.yaml");
        std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
        assert!(
            read(&[binary]).errors[0]
                .to_string()
                .contains("document 1 is not YAML")
        );
        let json = write(dir.path(), "bad.json", "{");
        assert!(read(&[json]).errors[0].to_string().contains("is not JSON"));
        assert!(
            read(&[dir.path().join("absent")]).errors[0]
                .to_string()
                .contains("absent")
        );
    }

    #[test]
    fn a_bad_object_is_named_and_the_rest_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(
            dir.path(),
            "a.yaml",
            &format!(
                "{WEB}---\napiVersion: v1\nkind: Service\nmetadata: {{name: bad}}\nspec: {{ports: [{{port: x}}]}}\n"
            ),
        );
        let found = read(&[path]);
        assert_eq!(found.services.len(), 1);
        let text = found.errors[0].to_string();
        assert!(
            text.contains("a.yaml: document 2: Service bad: spec.ports[0].port"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_change_on_disk_is_said_again_and_a_broken_file_deletes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "a.yaml", WEB);
        let (tx, mut rx) = mpsc::channel(16);
        let task = tokio::spawn(follow(vec![path.clone()], tx));
        let next = async |rx: &mut mpsc::Receiver<Said>| loop {
            let said = tokio::time::timeout(Duration::from_secs(20), rx.recv())
                .await
                .unwrap()
                .unwrap();
            if matches!(said, Said::Change(Change::Replace { .. }) | Said::Lost(..)) {
                return said;
            }
        };
        let Said::Change(Change::Replace { services, .. }) = next(&mut rx).await else {
            panic!()
        };
        assert_eq!(services.len(), 1);
        write(dir.path(), "a.yaml", "kind: [\n");
        assert!(
            matches!(next(&mut rx).await, Said::Lost(Collection::Services, why) if why.contains("not YAML"))
        );
        write(
            dir.path(),
            "a.yaml",
            &format!("{WEB}---\n{}", WEB.replace("web", "web2")),
        );
        let Said::Change(Change::Replace { services, .. }) = next(&mut rx).await else {
            panic!()
        };
        assert_eq!(services.len(), 2);
        task.abort();
    }
}
