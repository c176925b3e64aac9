//! kube-proxy's `/metrics` (kube-proxy.md 6.4), as far as they tell version, gates and syncs.

use model::address::Family;
use model::profile::{ProxyHealth, SyncTimes, Version};
use std::collections::BTreeMap;

/// What the metrics say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// `kubernetes_build_info`.
    pub version: Option<Version>,
    /// `kubernetes_feature_enabled`.
    pub gates: BTreeMap<String, bool>,
    /// Sync times.
    pub health: ProxyHealth,
    /// At least one metric is kube-proxy's.
    pub is_kube_proxy: bool,
}

/// Reads the Prometheus text format; lines that are not understood are skipped.
pub fn parse(text: &str) -> Metrics {
    let mut found = Metrics::default();
    // Up to 1.32 there is no label: the value is both families'.
    let mut plain = SyncTimes::default();
    let mut labelled: BTreeMap<Family, SyncTimes> = BTreeMap::new();
    for (name, labels, value) in text.lines().filter_map(sample) {
        if name == "kubernetes_build_info" {
            found.version = label(&labels, "git_version").and_then(|v| v.parse().ok());
            continue;
        }
        if name == "kubernetes_feature_enabled" {
            if let Some(gate) = label(&labels, "name") {
                found.gates.insert(gate.to_string(), value > 0.0);
            }
            continue;
        }
        if name == "process_start_time_seconds" {
            found.health.started = millis(value);
            continue;
        }
        let Some(name) = name.strip_prefix("kubeproxy_") else {
            continue;
        };
        found.is_kube_proxy = true;
        if name == "sync_proxy_rules_endpoint_changes_total"
            || name == "sync_proxy_rules_service_changes_total"
        {
            *found.health.changes_total.get_or_insert(0) += value.max(0.0) as u64;
            continue;
        }
        let times = match label(&labels, "ip_family") {
            Some("IPv4") => labelled.entry(Family::V4).or_default(),
            Some("IPv6") => labelled.entry(Family::V6).or_default(),
            _ => &mut plain,
        };
        match name {
            "sync_proxy_rules_last_timestamp_seconds" => times.last_sync_end = millis(value),
            "sync_proxy_rules_last_queued_timestamp_seconds" => times.last_queued = millis(value),
            "sync_proxy_rules_duration_seconds_sum" => times.duration_sum_ms = Some(value * 1e3),
            "sync_proxy_rules_duration_seconds_count" => {
                times.duration_count = Some(value.max(0.0) as u64);
            }
            // A partial restore that fails is followed by a full one: only that one's failure counts.
            "sync_proxy_rules_iptables_restore_failures_total"
            | "sync_proxy_rules_nftables_sync_failures_total" => {
                *times.failures.get_or_insert(0) += value.max(0.0) as u64;
            }
            _ => {}
        }
    }
    found.health.per_family = labelled.values().any(|t| {
        t.last_sync_end.is_some() || t.last_queued.is_some() || t.duration_count.is_some()
    });
    if found.health.per_family {
        found.health.families = labelled;
    } else if found.is_kube_proxy {
        found.health.families = Family::ALL.into_iter().map(|f| (f, plain)).collect();
    }
    found
}

/// Seconds since the epoch, in milliseconds. 0 is a gauge that was never set.
fn millis(seconds: f64) -> Option<u64> {
    (seconds > 0.0 && seconds.is_finite()).then_some((seconds * 1e3) as u64)
}

type Labels = Vec<(String, String)>;

fn label<'a>(labels: &'a Labels, name: &str) -> Option<&'a str> {
    labels
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.as_str())
}

/// `name{label="value",…} value [timestamp]`.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let close = loop {
                match chars.next()? {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next()?.1 {
                        'n' => value.push('\n'),
                        other => value.push(other),
                    },
                    (_, other) => value.push(other),
                }
            };
            labels.push((key.trim().to_string(), value));
            rest = &after[close + 1..];
        }
    }
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((name, labels, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_apart_from_1_33_on() {
        let found = parse(
            r#"# HELP kubernetes_build_info x
kubernetes_build_info{build_date="2026-01-01T00:00:00Z",git_version="v1.34.4",go_version="go1.24"} 1
kubernetes_feature_enabled{name="AllowServiceExternalIPs",stage="BETA"} 0
kubernetes_feature_enabled{name="Odd \"gate\", with } in it",stage=""} 1
process_start_time_seconds 1.7e+09
kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.76406e+09
kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} 1.76405e+09
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 0
kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="+Inf"} 3
kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family="IPv4"} 0.25
kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 3
kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 2
kubeproxy_sync_proxy_rules_endpoint_changes_total 10
kubeproxy_sync_proxy_rules_service_changes_total 5
garbage
bad{ 1
kubeproxy_nan NaN
"#,
        );
        assert!(found.is_kube_proxy && found.health.per_family);
        assert_eq!(found.version.unwrap().to_string(), "v1.34.4");
        assert!(!found.gates["AllowServiceExternalIPs"]);
        assert_eq!(found.gates.len(), 2);
        assert_eq!(found.health.started, Some(1_700_000_000_000));
        assert_eq!(found.health.changes_total, Some(15));
        let v4 = &found.health.families[&Family::V4];
        assert_eq!(v4.last_sync_end, Some(1_764_060_000_000));
        assert_eq!(v4.last_queued, None);
        assert_eq!(
            (v4.duration_sum_ms, v4.duration_count, v4.failures),
            (Some(250.0), Some(3), Some(2))
        );
        assert_eq!(
            found.health.families[&Family::V6].last_sync_end,
            Some(1_764_050_000_000)
        );
    }

    #[test]
    fn one_series_for_both_families_before() {
        let found = parse("kubeproxy_sync_proxy_rules_last_timestamp_seconds 1.7e+09\n");
        assert!(!found.health.per_family);
        assert_eq!(found.health.families.len(), 2);
        assert_eq!(
            found.health.families[&Family::V6].last_sync_end,
            Some(1_700_000_000_000)
        );
    }

    #[test]
    fn metrics_of_something_else_are_not_kube_proxys() {
        let found = parse("go_goroutines 7\nprocess_start_time_seconds 1.7e+09\n");
        assert!(!found.is_kube_proxy && found.health.families.is_empty());
    }
}
