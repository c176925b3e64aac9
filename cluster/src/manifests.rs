//! API objects from files: JSON or YAML, several documents in a file, `List`s. No cluster needed.

mod documents;

use crate::field::BadObject;
use crate::said::{Collection, Said};
use crate::trim::{self, Object, objects};
use documents::{documents, files, flatten, is_empty_list};
use ipnet::IpNet;
use model::endpoint::EndpointSlice;
use model::flow::Objects;
use model::flow::store::{Change as Told, Kind};
use model::service::Service;
use model::time::Now;
use model::view::{Change, Node};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// How often followed files are looked at; a change counts once it has stood still for as long.
const POLL: Duration = Duration::from_secs(1);

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
    /// It changed while it was read: what was read may be of two moments, or half of one.
    #[error("{}: was changed while it was read", .path.display())]
    Changed {
        /// The file, or the directory that a file came to or went from.
        path: PathBuf,
    },
    /// Nothing says which Services there are, which is not the same as none.
    #[error("{}: {why} (where there really is no Service, an empty List says so)", names(.paths))]
    NoServices {
        /// Everything that was looked at.
        paths: Vec<PathBuf>,
        /// What was there.
        why: String,
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
    /// There are Pods among them: [`read_objects`] has something to read.
    pub has_pods: bool,
    /// What could not be used.
    pub errors: Vec<ManifestError>,
    /// The files as they were before they were read.
    stamps: Vec<Stamp>,
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
/// subdirectories), in order of their names. What cannot be used is in [`Manifests::errors`]; that
/// no Service is among them is an error too, unless an empty `List` says that there is none.
pub fn read(paths: &[PathBuf]) -> Manifests {
    let mut found = Manifests {
        stamps: stamps(paths),
        ..Manifests::default()
    };
    let mut documents_read = 0;
    let mut says_none = false;
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
            documents_read += 1;
            let mut objects = Vec::new();
            says_none |= is_empty_list(&document);
            flatten(document, &mut objects, 0);
            for value in objects {
                found.has_pods |= trim::kind_of(&value) == Some(("", "Pod"));
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
    let after = stamps(paths);
    if let Some(path) = changed(&found.stamps, &after) {
        found.errors.push(ManifestError::Changed { path });
    } else if services.is_empty() && !says_none && found.errors.is_empty() {
        let why = match (after.len(), documents_read) {
            (0, _) => "there is no .json, .yaml or .yml file".to_string(),
            (files, 0) => format!("no object in {files} files"),
            (_, objects) => format!("no Service among what is in {objects} documents"),
        };
        found.errors.push(ManifestError::NoServices {
            paths: paths.to_vec(),
            why,
        });
    }
    found.services = services.into_values().collect();
    found.slices = slices.into_values().collect();
    found.nodes = nodes.into_values().collect();
    found.service_cidrs = (!cidrs.is_empty()).then(|| cidrs.into_values().flatten().collect());
    found
}

/// The objects of the debugging flow, where Pods are among the manifests; without them nothing of it
/// can be told. Their facts count as old. What cannot be used is left out: [`read`] names it.
pub fn read_objects(paths: &[PathBuf]) -> Option<Objects> {
    let mut found = Objects::default();
    found.settled_facts = true;
    found.not_given = Kind::ALL.into();
    let now = Now::default();
    for path in files(paths, &mut Vec::new()) {
        for (_, document) in documents(&path).unwrap_or_default() {
            let mut all = Vec::new();
            flatten(document, &mut all, 0);
            for value in all {
                let said = match trim::kind_of(&value) {
                    Some(("", "Service")) => objects::service_object(&value).map(Told::Service),
                    Some(("discovery.k8s.io", "EndpointSlice")) => {
                        objects::slice_object(&value).map(Told::Slice)
                    }
                    Some(("", "Pod")) => objects::pod(&value).map(Told::Pod),
                    Some(("", "Node")) => objects::node_object(&value).map(Told::Node),
                    _ => continue,
                };
                if let Ok(said) = said {
                    found.not_given.remove(&match said {
                        Told::Service(_) => Kind::Services,
                        Told::Slice(_) => Kind::Slices,
                        Told::Pod(_) => Kind::Pods,
                        _ => Kind::Nodes,
                    });
                    found.apply(said, now);
                }
            }
        }
    }
    for kind in Kind::ALL {
        found.apply(Told::Alive(kind), now);
    }
    (!found.not_given.contains(&Kind::Pods)).then_some(found)
}

/// Follows the files: says at once what was found in them `first`, and everything again whenever a
/// file's content, time or name changed and stood still since. Ends when nobody listens any more.
/// Files that cannot be read leave the last good content in place, and are reported for as long.
pub async fn follow(paths: Vec<PathBuf>, first: Manifests, said: mpsc::Sender<Said>) {
    // The files as they were when they were read last, and when they were looked at last.
    let mut read_at = first.stamps.clone();
    let mut seen = read_at.clone();
    let mut good = first.errors.is_empty();
    if !say(first, &said).await {
        return;
    }
    loop {
        tokio::time::sleep(POLL).await;
        let look = paths.clone();
        let Ok(now) = tokio::task::spawn_blocking(move || stamps(&look)).await else {
            return;
        };
        if now == read_at {
            // What cannot be used does not become current by standing there.
            if good && !alive(&said).await {
                return;
            }
        } else if now == seen {
            let look = paths.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || read(&look)).await else {
                return;
            };
            read_at = found.stamps.clone();
            good = found.errors.is_empty();
            if !say(found, &said).await {
                return;
            }
        }
        seen = now;
    }
}

/// True while somebody listens.
async fn alive(said: &mpsc::Sender<Said>) -> bool {
    said.send(Said::Alive(Collection::Services)).await.is_ok()
        && said.send(Said::Alive(Collection::Slices)).await.is_ok()
}

async fn say(mut found: Manifests, said: &mpsc::Sender<Said>) -> bool {
    let mut all = Vec::new();
    let errors = std::mem::take(&mut found.errors);
    if errors.is_empty() {
        all.push(Said::ProxyConfig(found.proxy_config.take()));
        all.extend(found.into_changes().into_iter().map(Said::Change));
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
    !errors.is_empty() || alive(said).await
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

/// The first file that differs, or that is on one side only.
fn changed(before: &[Stamp], after: &[Stamp]) -> Option<PathBuf> {
    let other = |all: &[Stamp], one: &Stamp| !all.contains(one);
    let path = before
        .iter()
        .find(|one| other(after, one))
        .or_else(|| after.iter().find(|one| other(before, one)));
    path.map(|(path, _, _)| path.clone())
}

fn names(paths: &[PathBuf]) -> String {
    let all: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

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
    fn the_debugging_flow_needs_pods_and_says_nothing_of_kinds_that_are_not_there() {
        use model::flow::{Check, api_findings};
        let dir = tempfile::tempdir().unwrap();
        let here = [dir.path().to_path_buf()];
        let service = WEB.replace("spec: {", "spec: {selector: {app: frontend}, ");
        write(dir.path(), "a.yaml", &service);
        assert!(read_objects(&here).is_none());
        write(
            dir.path(),
            "b.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, labels: {app: web}}\nstatus: {phase: Running}\n",
        );
        let checks = || -> Vec<Check> {
            let objects = read_objects(&here).unwrap();
            let all = api_findings(&objects, Now::default()).unwrap();
            all.iter().map(|f| f.finding.check).collect()
        };
        assert_eq!(checks(), [Check::SelectorMatchesNothing]);
        write(
            dir.path(),
            "c.yaml",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: other}\naddressType: IPv4\nendpoints: []\n",
        );
        assert_eq!(
            checks(),
            [Check::SelectorMatchesNothing, Check::NoUsableEndpoint]
        );
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

    #[test]
    fn that_nothing_was_learnt_is_not_the_same_as_no_services() {
        let dir = tempfile::tempdir().unwrap();
        let here = [dir.path().to_path_buf()];
        let says = |text: &str| {
            let found = read(&here);
            let all: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            assert!(all.len() == 1 && all[0].contains(text), "{text}: {all:?}");
        };
        says("there is no .json, .yaml or .yml file");
        write(dir.path(), "README.md", WEB);
        says("there is no .json, .yaml or .yml file");
        write(dir.path(), "a.yaml", "# Source: templates/none.yaml\n---\n");
        says("no object in 1 files");
        write(
            dir.path(),
            "a.yaml",
            "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n",
        );
        says("no Service among what is in 1 documents");
        // Written by halves: opened, cut off after the items, and cut off before them.
        write(dir.path(), "a.yaml", "\n");
        says("a.yaml: document 1 is not YAML: the file is empty");
        write(
            dir.path(),
            "a.yaml",
            "apiVersion: v1\nitems:\n- kind: Service\n",
        );
        says("kind");
        write(dir.path(), "a.yaml", "apiVersion: v1\nkind: List\nitems:\n");
        says("a List without a list of items");
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("gone"), dir.path().join("l.yaml")).unwrap();
        write(dir.path(), "a.yaml", WEB);
        says("l.yaml");
        std::fs::remove_file(dir.path().join("l.yaml")).unwrap();
        for list in ["List", "ServiceList"] {
            write(
                dir.path(),
                "a.yaml",
                &format!(
                    "apiVersion: v1\nitems: []\nkind: {list}\nmetadata: {{resourceVersion: ''}}\n"
                ),
            );
            let found = read(&here);
            assert!(found.errors.is_empty(), "{list}: {:?}", found.errors);
            assert!(found.services.is_empty());
        }
    }

    #[test]
    fn files_that_move_under_the_reading_are_told_apart() {
        let at = |name: &str, length| (PathBuf::from(name), Some(SystemTime::UNIX_EPOCH), length);
        let all = [at("a", 1), at("b", 2)];
        assert_eq!(changed(&all, &all), None);
        assert_eq!(changed(&all, &[at("a", 1), at("b", 3)]), Some("b".into()));
        assert_eq!(changed(&all, &all[..1]), Some("b".into()));
        assert_eq!(changed(&all[1..], &all), Some("a".into()));
    }

    #[test]
    fn deep_yaml_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let deep = format!("{WEB}---\n{}", "[".repeat(100_000));
        let began = std::time::Instant::now();
        let found = read(&[write(dir.path(), "deep.yaml", &deep)]);
        let text = found.errors[0].to_string();
        assert!(
            text.contains("deep.yaml: document 2 is not YAML: more than"),
            "{text}"
        );
        assert!(began.elapsed() < Duration::from_secs(5), "{began:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_used_does_not_become_current_by_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let paths = vec![dir.path().to_path_buf()];
        write(dir.path(), "a.yaml", WEB);
        let (tx, mut rx) = mpsc::channel(64);
        let task = tokio::spawn(follow(paths.clone(), read(&paths), tx));
        let next = async |rx: &mut mpsc::Receiver<Said>| {
            tokio::time::timeout(Duration::from_secs(20), rx.recv())
                .await
                .unwrap()
                .unwrap()
        };
        while next(&mut rx).await != Said::Alive(Collection::Slices) {}
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        loop {
            match next(&mut rx).await {
                Said::Lost(Collection::Services, why) => {
                    assert!(why.contains("there is no .json"), "{why}");
                    break;
                }
                Said::Alive(_) => {}
                other => panic!("{other:?}"),
            }
        }
        // For three looks nothing is said of it: it is still lost.
        let more = tokio::time::timeout(3 * POLL, rx.recv()).await;
        assert!(more.is_err(), "{more:?}");
        write(dir.path(), "a.yaml", WEB);
        assert!(matches!(next(&mut rx).await, Said::ProxyConfig(None)));
        task.abort();
    }

    #[tokio::test]
    async fn a_change_on_disk_is_said_again_and_a_broken_file_deletes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "a.yaml", WEB);
        let (tx, mut rx) = mpsc::channel(16);
        let paths = vec![path.clone()];
        let task = tokio::spawn(follow(paths.clone(), read(&paths), tx));
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
