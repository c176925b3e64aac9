//! The HTTP API. Views of one answer are query parameters, never one more path segment. JSON by
//! default; `?output=text` or `Accept: text/plain` gives text. Errors are problem details (RFC 9457)
//! that say what was wrong and what exists instead.

use crate::SharedFleet;
use crate::fleet::Fleet;
use crate::inspect::{Freshness, Inspector};
use crate::objects::SharedObjects;
use crate::view::drift::Filter;
use crate::view::nodes::Page;
use crate::view::service::{Choices, NoService};
use crate::view::{NotFound, View, conntrack, drift, everywhere, node, nodes, service, words};
use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRef, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use model::finding::{FindingKind, Severity};
use model::flow::Check;
use model::name::{NodeName, ServiceName};
use model::time::Now;
use serde::Serialize;
use std::collections::HashMap;

/// What can be asked, for errors and `/`.
const PATHS: [&str; 12] = [
    "/nodes",
    "/nodes/{node}",
    "/nodes/{node}/svc/{name}",
    "/nodes/{node}/svc/{namespace}/{name}",
    "/svc/{namespace}/{name}",
    "/drift",
    "/conntrack",
    "/nodes/{node}/conntrack",
    "/metrics",
    "/healthz",
    "/readyz",
    "/",
];

type Parameters = Result<Query<HashMap<String, String>>, QueryRejection>;
type Segments<T> = Result<Path<T>, PathRejection>;

/// What answers come from.
#[derive(Clone)]
struct Sources {
    fleet: SharedFleet,
    inspector: Inspector,
    objects: SharedObjects,
}

impl FromRef<Sources> for SharedFleet {
    fn from_ref(sources: &Sources) -> SharedFleet {
        sources.fleet.clone()
    }
}

impl FromRef<Sources> for Inspector {
    fn from_ref(sources: &Sources) -> Inspector {
        sources.inspector.clone()
    }
}

impl FromRef<Sources> for SharedObjects {
    fn from_ref(sources: &Sources) -> SharedObjects {
        sources.objects.clone()
    }
}

/// Everything. `inspector`: the way to agents that are to look now; `objects`: what the API server says.
pub fn router(fleet: SharedFleet, inspector: Inspector, objects: SharedObjects) -> Router {
    let more = Router::new()
        .route("/", get(root))
        .route("/nodes", get(get_nodes))
        .route("/nodes/{node}", get(get_node))
        .route("/nodes/{node}/svc/{name}", get(get_named))
        .route("/nodes/{node}/svc/{namespace}/{name}", get(get_service))
        .route("/svc/{namespace}/{name}", get(get_everywhere))
        .route("/drift", get(get_drift))
        .route("/conntrack", get(get_conntrack))
        .route("/nodes/{node}/conntrack", get(get_node_conntrack));
    let sources = Sources {
        fleet,
        inspector,
        objects,
    };
    finish(more.merge(scraped()), sources)
}

/// What Prometheus and the kubelet ask for, and nothing else.
pub fn scrape_router(fleet: SharedFleet, objects: SharedObjects) -> Router {
    let sources = Sources {
        fleet,
        inspector: Inspector::default(),
        objects,
    };
    finish(scraped(), sources)
}

fn scraped() -> Router<Sources> {
    Router::new()
        .route("/metrics", get(get_metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(health))
}

fn finish(router: Router<Sources>, sources: Sources) -> Router {
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(not_allowed)
        .with_state(sources)
}

/// An error, as problem details.
#[derive(Debug, Serialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    exists: Vec<String>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>, exists: Vec<String>) -> Problem {
        Problem {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            exists,
        }
    }

    fn bad(detail: impl Into<String>, exists: &[&str]) -> Problem {
        let exists = exists.iter().map(ToString::to_string).collect();
        Problem::new(StatusCode::BAD_REQUEST, detail, exists)
    }
}

impl From<NotFound> for Problem {
    fn from(n: NotFound) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, n.detail, n.exists)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        respond(
            status,
            "application/problem+json",
            words::json(&self).unwrap_or_default(),
        )
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)));
    (status, headers, body).into_response()
}

/// What every call knows: its parameters, checked, and the form that is asked for.
struct Asked {
    parameters: HashMap<String, String>,
    text: bool,
}

impl Asked {
    fn new(q: Parameters, headers: &HeaderMap, known: &[&str]) -> Result<Asked, Problem> {
        let Query(parameters) = q.map_err(|e| Problem::bad(e.body_text(), known))?;
        let mut all = known.to_vec();
        all.push("output");
        if let Some(unknown) = parameters.keys().find(|k| !all.contains(&k.as_str())) {
            return Err(Problem::bad(
                format!("there is no parameter {unknown:?} here"),
                &all,
            ));
        }
        let text = match parameters.get("output").map(String::as_str) {
            Some("text") => true,
            Some("json") => false,
            Some(other) => {
                return Err(Problem::bad(
                    format!("output={other:?} is not known"),
                    &["json", "text"],
                ));
            }
            None => headers
                .get(header::ACCEPT)
                .and_then(|v| v.to_str().ok())
                .is_some_and(|v| v.trim_start().starts_with("text/plain")),
        };
        Ok(Asked { parameters, text })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    fn number(&self, name: &str, default: usize) -> Result<usize, Problem> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| Problem::bad(format!("{name}={text:?} is not a number"), &[])),
        }
    }

    /// Is a fresh look worth waiting for?
    fn waits(&self) -> Result<bool, Problem> {
        match self.get("fresh") {
            None => Ok(false),
            Some("wait") => Ok(true),
            Some(other) => Err(Problem::bad(
                format!("fresh={other:?} is not known"),
                &["wait"],
            )),
        }
    }

    fn page(&self) -> Result<Page, Problem> {
        let limit = self.number("limit", Page::LIMIT)?;
        if limit == 0 || limit > Page::LIMIT {
            return Err(Problem::bad(
                format!("limit must be 1 to {}", Page::LIMIT),
                &[],
            ));
        }
        Ok(Page {
            from: self.number("from", 0)?,
            limit,
        })
    }

    fn show(&self, view: &impl View) -> Result<Response, Problem> {
        if self.text {
            return Ok(respond(
                StatusCode::OK,
                "text/plain; charset=utf-8",
                view.text(),
            ));
        }
        Ok(respond(StatusCode::OK, "application/json", json(view)?))
    }
}

fn json(value: &impl Serialize) -> Result<String, Problem> {
    words::json(value)
        .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string(), Vec::new()))
}

fn look<T>(fleet: &SharedFleet, f: impl FnOnce(&Fleet, Now) -> T) -> T {
    f(
        &fleet.read().unwrap_or_else(|e| e.into_inner()),
        crate::now(),
    )
}

fn segments<T>(path: Segments<T>) -> Result<T, Problem> {
    path.map(|Path(p)| p)
        .map_err(|e| Problem::bad(e.body_text(), &PATHS))
}

type Answer = Result<Response, Problem>;

async fn get_nodes(State(fleet): State<SharedFleet>, q: Parameters, h: HeaderMap) -> Answer {
    let asked = Asked::new(q, &h, &["from", "limit"])?;
    let page = asked.page()?;
    asked.show(&look(&fleet, |f, now| nodes::nodes(f, page, now)))
}

async fn get_node(
    State(fleet): State<SharedFleet>,
    path: Segments<String>,
    q: Parameters,
    h: HeaderMap,
) -> Answer {
    let asked = Asked::new(q, &h, &[])?;
    let name = segments(path)?;
    asked.show(&look(&fleet, |f, now| node::node(f, &name, now))?)
}

async fn get_named(
    State(fleet): State<SharedFleet>,
    State(inspector): State<Inspector>,
    path: Segments<(String, String)>,
    q: Parameters,
    h: HeaderMap,
) -> Answer {
    let asked = Asked::new(q, &h, &["namespace", "fresh"])?;
    let (node, name) = segments(path)?;
    let (namespace, bare) = match name.split_once('/') {
        Some((namespace, bare)) => (namespace, bare),
        None => (asked.get("namespace").unwrap_or_default(), &*name),
    };
    let wanted = ServiceName::new(namespace, bare);
    // First, so that a Service that is new on the node is known.
    let freshness = inspector
        .look(&NodeName::from(&*node), &wanted, asked.waits()?)
        .await;
    match look(&fleet, |f, _| {
        service::resolve(f, &node, &name, asked.get("namespace"))
    }) {
        Ok(name) => show_service(&fleet, &asked, &node, &name, freshness),
        Err(NoService::NotFound(n)) => Err(n.into()),
        Err(NoService::Ambiguous(choices)) => ambiguous(&asked, &choices),
    }
}

fn show_service(
    fleet: &SharedFleet,
    asked: &Asked,
    node: &str,
    name: &ServiceName,
    freshness: Freshness,
) -> Answer {
    let mut view = look(fleet, |f, now| service::service(f, node, name, now))?;
    view.freshness = Some(freshness);
    asked.show(&view)
}

fn ambiguous(asked: &Asked, choices: &Choices) -> Answer {
    let status = StatusCode::MULTIPLE_CHOICES;
    if asked.text {
        let mut text = format!("{}\n", words::clean(&choices.verdict));
        for c in &choices.choices {
            text += &format!("  {c}\n");
        }
        return Ok(respond(status, "text/plain; charset=utf-8", text));
    }
    Ok(respond(status, "application/json", json(choices)?))
}

async fn get_service(
    State(fleet): State<SharedFleet>,
    State(inspector): State<Inspector>,
    path: Segments<(String, String, String)>,
    q: Parameters,
    h: HeaderMap,
) -> Answer {
    let asked = Asked::new(q, &h, &["fresh"])?;
    let (node, namespace, name) = segments(path)?;
    let name = ServiceName::new(&namespace, &name);
    let freshness = inspector
        .look(&NodeName::from(&*node), &name, asked.waits()?)
        .await;
    show_service(&fleet, &asked, &node, &name, freshness)
}

async fn get_everywhere(
    State(fleet): State<SharedFleet>,
    State(objects): State<SharedObjects>,
    path: Segments<(String, String)>,
    q: Parameters,
    h: HeaderMap,
) -> Answer {
    let asked = Asked::new(q, &h, &[])?;
    let (namespace, name) = segments(path)?;
    let name = ServiceName::new(&namespace, &name);
    let view =
        objects.look(|api| look(&fleet, |f, now| everywhere::everywhere(f, api, &name, now)));
    asked.show(&view?)
}

async fn get_drift(
    State(fleet): State<SharedFleet>,
    State(objects): State<SharedObjects>,
    q: Parameters,
    h: HeaderMap,
) -> Answer {
    let known = [
        "kind",
        "severity",
        "namespace",
        "node",
        "age",
        "from",
        "limit",
    ];
    let asked = Asked::new(q, &h, &known)?;
    let filter = filter(&asked)?;
    let page = asked.page()?;
    let api = objects.drift();
    asked.show(&look(&fleet, |f, now| {
        drift::drift(f, &api, &filter, page, now)
    }))
}

async fn get_conntrack(State(fleet): State<SharedFleet>, q: Parameters, h: HeaderMap) -> Answer {
    let asked = Asked::new(q, &h, &["from", "limit"])?;
    let page = asked.page()?;
    asked.show(&look(&fleet, |f, now| conntrack::fleet(f, page, now)))
}

async fn get_node_conntrack(
    State(fleet): State<SharedFleet>,
    path: Segments<String>,
    q: Parameters,
    h: HeaderMap,
) -> Answer {
    let asked = Asked::new(q, &h, &[])?;
    let name = segments(path)?;
    asked.show(&look(&fleet, |f, now| conntrack::node(f, &name, now))?)
}

fn filter(asked: &Asked) -> Result<Filter, Problem> {
    let word = asked.get("kind");
    let kind = word.and_then(|word| FindingKind::ALL.into_iter().find(|k| k.word() == word));
    let check = word.and_then(|word| Check::ALL.into_iter().find(|c| c.word() == word));
    if let (Some(word), None, None) = (word, kind, check) {
        let kinds = FindingKind::ALL.map(FindingKind::word);
        let all: Vec<&str> = kinds
            .into_iter()
            .chain(Check::ALL.map(Check::word))
            .collect();
        return Err(Problem::bad(format!("there is no kind {word:?}"), &all));
    }
    let severity = match asked.get("severity") {
        None => None,
        Some("info") => Some(Severity::Info),
        Some("warning") => Some(Severity::Warning),
        Some("critical") => Some(Severity::Critical),
        Some(word) => {
            let all = ["info", "warning", "critical"];
            return Err(Problem::bad(format!("there is no severity {word:?}"), &all));
        }
    };
    let age_ms = match asked.get("age") {
        None => 0,
        Some(text) => duration_ms(text).ok_or_else(|| {
            Problem::bad(
                format!("age={text:?} is not a duration"),
                &["30s", "5m", "2h"],
            )
        })?,
    };
    let owned = |name| asked.get(name).map(str::to_owned);
    Ok(Filter {
        kind,
        check,
        severity,
        namespace: owned("namespace"),
        node: owned("node"),
        age_ms,
    })
}

/// `90`, `90s`, `5m`, `2h`, `1d`.
fn duration_ms(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(digits) => (digits, text.as_bytes()[digits.len()]),
        None => (text, b's'),
    };
    let seconds = match unit {
        b'm' => 60,
        b'h' => 3600,
        b'd' => 86400,
        _ => 1,
    };
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(seconds)?
        .checked_mul(1000)
}

async fn get_metrics(
    State(fleet): State<SharedFleet>,
    State(objects): State<SharedObjects>,
) -> Answer {
    let api = objects.drift();
    let body = look(&fleet, |f, now| crate::metrics::metrics(f, &api, now))
        .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string(), Vec::new()))?;
    Ok(respond(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        body,
    ))
}

async fn health() -> Response {
    respond(StatusCode::OK, "text/plain; charset=utf-8", "ok\n".into())
}

#[derive(Serialize)]
struct Root {
    verdict: String,
    version: &'static str,
    paths: [&'static str; 12],
}

impl View for Root {
    fn text(&self) -> String {
        let paths: Vec<String> = self.paths.iter().map(|p| format!("  {p}\n")).collect();
        format!("{}\n\n{}", words::clean(&self.verdict), paths.concat())
    }
}

async fn root(State(fleet): State<SharedFleet>, q: Parameters, h: HeaderMap) -> Answer {
    let asked = Asked::new(q, &h, &[])?;
    let all = Page { from: 0, limit: 1 };
    let verdict = look(&fleet, |f, now| nodes::nodes(f, all, now).verdict);
    asked.show(&Root {
        verdict,
        version: env!("CARGO_PKG_VERSION"),
        paths: PATHS,
    })
}

async fn unknown_path(uri: axum::http::Uri) -> Problem {
    let exists = PATHS.iter().map(ToString::to_string).collect();
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no path {:?}", uri.path()),
        exists,
    )
}

async fn not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "only GET is answered",
        Vec::new(),
    )
}
