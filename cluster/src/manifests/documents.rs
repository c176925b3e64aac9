//! From paths to documents to objects: which files count, what is in them, and what a `List` holds.

use super::ManifestError;
use crate::yaml;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest file that is read: a whole cluster of 10,000 Services is below 200 MB.
const FILE_BYTES: u64 = 512 << 20;

/// The files among the paths, and the manifests in the directories among them, sorted.
pub(super) fn files(paths: &[PathBuf], errors: &mut Vec<ManifestError>) -> Vec<PathBuf> {
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
                        // A link to nothing is kept: what it stood for is not gone.
                        ["json", "yaml", "yml"].contains(&extension) && !p.is_dir()
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
pub(super) fn documents(path: &Path) -> Result<Vec<(usize, Value)>, ManifestError> {
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
    if text.trim().is_empty() {
        // What a program leaves that opened the file and has not written yet.
        return Err(syntax(1, "the file is empty".into()));
    }
    let mut all = Vec::new();
    let mut add = |number: usize, value: Result<Value, String>| -> Result<(), ManifestError> {
        match value {
            Ok(Value::Null) => Ok(()),
            Ok(value @ Value::Object(_)) if is_list(&value) && !value["items"].is_array() => Err(
                syntax(number, "it is a List without a list of items".into()),
            ),
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
        yaml::shallow(&text).map_err(|(document, why)| syntax(document, why))?;
        for (i, document) in serde_yaml_ng::Deserializer::from_str(&text).enumerate() {
            add(
                i + 1,
                Value::deserialize(document).map_err(|e| e.to_string()),
            )?;
        }
    }
    Ok(all)
}

/// A list of objects of which Services or EndpointSlices may be some.
fn is_list(value: &Value) -> bool {
    ["List", "ServiceList", "EndpointSliceList"].contains(&value["kind"].as_str().unwrap_or(""))
}

/// An empty `List`, as `kubectl get --output yaml` gives it, or an empty `ServiceList`.
pub(super) fn is_empty_list(value: &Value) -> bool {
    let of_services = ["List", "ServiceList"].contains(&value["kind"].as_str().unwrap_or(""));
    of_services && value["items"].as_array().is_some_and(Vec::is_empty)
}

/// The objects of a `List` (or `ServiceList`, …), else the object itself.
pub(super) fn flatten(mut value: Value, into: &mut Vec<Value>, depth: u8) {
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
