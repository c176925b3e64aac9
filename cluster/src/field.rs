//! A JSON value together with the path that leads to it, so that every complaint names its field.

use ipnet::IpNet;
use serde_json::Value;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

/// What is wrong with an object. The object is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {why}")]
pub struct BadObject {
    /// Kind, namespace and name as far as they are known (`Service shop/web`).
    pub object: String,
    /// The field (`spec.ports[0].port`).
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

/// A place in an object.
#[derive(Clone, Debug)]
pub(crate) struct Field<'a> {
    value: &'a Value,
    path: String,
}

/// Field and reason; the object's name is added by who knows it.
pub(crate) type Wrong = (String, String);

static NULL: Value = Value::Null;

impl<'a> Field<'a> {
    pub(crate) fn root(value: &'a Value) -> Field<'a> {
        Field {
            value,
            path: String::new(),
        }
    }

    /// The field of that name; null where it is absent.
    pub(crate) fn at(&self, name: &str) -> Field<'a> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        Field {
            value: self.value.get(name).unwrap_or(&NULL),
            path,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.value.is_null()
    }

    /// Says what is wrong with this field.
    pub(crate) fn wrong<T>(&self, why: impl Into<String>) -> Result<T, Wrong> {
        let path = if self.path.is_empty() {
            "(top)".to_string()
        } else {
            self.path.clone()
        };
        Err((path, why.into()))
    }

    fn wants<T>(&self, what: &str) -> Result<T, Wrong> {
        if self.value.is_null() {
            self.wrong("is missing")
        } else {
            self.wrong(format!("{} is not {what}", brief(self.value)))
        }
    }

    /// Text; `None` where it is null or absent.
    pub(crate) fn text(&self) -> Result<Option<&'a str>, Wrong> {
        match self.value {
            Value::Null => Ok(None),
            Value::String(s) => Ok(Some(s)),
            _ => self.wants("text"),
        }
    }

    /// Text; an error where it is absent or empty.
    pub(crate) fn some_text(&self) -> Result<&'a str, Wrong> {
        match self.text()? {
            Some(s) if !s.is_empty() => Ok(s),
            Some(_) => self.wrong("is empty"),
            None => self.wrong("is missing"),
        }
    }

    pub(crate) fn boolean(&self) -> Result<Option<bool>, Wrong> {
        match self.value {
            Value::Null => Ok(None),
            Value::Bool(b) => Ok(Some(*b)),
            _ => self.wants("true or false"),
        }
    }

    /// A whole number within `0..=max`.
    pub(crate) fn number(&self, max: u64) -> Result<Option<u64>, Wrong> {
        match self.value {
            Value::Null => Ok(None),
            Value::Number(n) => match n.as_u64() {
                Some(n) if n <= max => Ok(Some(n)),
                _ => self.wants(&format!("a number from 0 to {max}")),
            },
            _ => self.wants(&format!("a number from 0 to {max}")),
        }
    }

    /// A port; 0 counts as absent, as in the API.
    pub(crate) fn port(&self) -> Result<Option<u16>, Wrong> {
        Ok(self
            .number(u64::from(u16::MAX))?
            .map(|n| n as u16)
            .filter(|n| *n != 0))
    }

    /// A port that must be there.
    pub(crate) fn some_port(&self) -> Result<u16, Wrong> {
        match self.port()? {
            Some(port) => Ok(port),
            None => self.wants("a port"),
        }
    }

    /// The entries of a list; none where it is null or absent.
    pub(crate) fn list(&self) -> Result<Vec<Field<'a>>, Wrong> {
        match self.value {
            Value::Null => Ok(Vec::new()),
            Value::Array(all) => Ok(all
                .iter()
                .enumerate()
                .map(|(i, value)| {
                    let mut path = self.path.clone();
                    // Writing to a String cannot fail.
                    let _ = write!(path, "[{i}]");
                    Field { value, path }
                })
                .collect()),
            _ => self.wants("a list"),
        }
    }

    /// The texts of a list.
    pub(crate) fn texts(&self) -> Result<Vec<&'a str>, Wrong> {
        self.list()?.iter().map(|f| f.some_text()).collect()
    }

    /// The keys of a map; none where it is null or absent.
    pub(crate) fn keys(&self) -> Result<Vec<&'a str>, Wrong> {
        match self.value {
            Value::Null => Ok(Vec::new()),
            Value::Object(map) => Ok(map.keys().map(String::as_str).collect()),
            _ => self.wants("a map"),
        }
    }

    /// Must be a map, or absent.
    pub(crate) fn map(self) -> Result<Field<'a>, Wrong> {
        match self.value {
            Value::Null | Value::Object(_) => Ok(self),
            _ => self.wants("a map"),
        }
    }
}

/// The start of a value, for a complaint; never longer than a line.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        text
    } else {
        let mut short: String = text.chars().take(60).collect();
        short.push('…');
        short
    }
}

/// An address as kube-proxy reads it (`netutils.ParseIPSloppy`): leading zeros of IPv4 are decimal,
/// an IPv4 address written as IPv6 is IPv4.
pub fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 16 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|_| part.parse())
            .ok()?;
    }
    parts
        .next()
        .is_none()
        .then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// A CIDR as kube-proxy reads it (`netutils.ParseCIDRSloppy`), its host bits cleared.
pub fn cidr(text: &str) -> Option<IpNet> {
    let (ip, len) = text.trim().split_once('/')?;
    let ip = address(ip)?;
    if !len.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    IpNet::new(ip, len.parse().ok()?).ok().map(|n| n.trunc())
}
