//! The mock's commands over plain HTTP/1.1 on loopback, for the binary.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /subscriptions` | `{"count":n}`, optionally `"origin":0` and the members of [`Subscribe`] | array of PushSubscription JSON |
//! | `GET /received?after=NUMBER` | | array of [`Received`](super::Received) |
//! | `POST /faults` | `{"scope":…,"fault":…}`, optionally `"times":n` or `"every":n` | `{}` |
//! | `DELETE /faults` | | `{}` |
//! | `POST /listeners` | `{"origin":0,"listening":false}` | `{}` |
//! | `GET /counters`, `GET /measured` | | [`Counters`](super::Counters), [`Measured`](super::Measured) |
//! | `GET /measured?origin=0` | | those of one origin |
//! | `DELETE /measured` | | `{}`: counts anew |
//! | `POST /crowds` | [`Plan`] | `{"crowd":0,"origin":"https://…"}`, its number and where it lies |
//! | `GET /crowds/0` | | [`CrowdCounts`](super::CrowdCounts) |
//! | `DELETE /crowds/0` | | `{}`: counts anew |
//! | `GET /ca.pem` | | the authority |

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;

use super::{Fault, Inner, Plan, Scope, Subscribe};

const BODY_MAX: usize = 1024 * 1024;

#[derive(Deserialize)]
struct SubscriptionsWanted {
    count: usize,
    #[serde(default)]
    origin: usize,
    #[serde(default)]
    application_server_key: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    vendor: Option<super::Vendor>,
    #[serde(default)]
    aesgcm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultWanted {
    #[serde(default = "everything")]
    scope: Scope,
    fault: Fault,
    times: Option<u64>,
    #[serde(default)]
    every: u64,
}

fn everything() -> Scope {
    Scope::Everything
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerWanted {
    #[serde(default)]
    origin: usize,
    listening: bool,
}

/// Serves commands until the listener's task is dropped.
pub(super) async fn run(listener: TcpListener, inner: Arc<Inner>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let inner = inner.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| serve(inner.clone(), request));
            // A client that goes away is no error.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn serve(inner: Arc<Inner>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let answer = match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => command(&inner, &parts, &body.to_bytes()).await,
        Err(_) => Err((StatusCode::BAD_REQUEST, "the body could not be read".to_owned())),
    };
    let (status, kind, text) = match answer {
        Ok((kind, text)) => (StatusCode::OK, kind, text),
        Err((status, text)) => (status, "text/plain", text),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    Ok(response)
}

type Answered = Result<(&'static str, String), (StatusCode, String)>;

async fn command(inner: &Arc<Inner>, parts: &http::request::Parts, body: &[u8]) -> Answered {
    let done = || json(&serde_json::json!({}));
    let origin_known = |origin: usize| match inner.state.origins.get(origin) {
        Some(_) => Ok(()),
        None => Err((StatusCode::BAD_REQUEST, format!("there is no origin {origin}"))),
    };
    match (&parts.method, parts.uri.path()) {
        (&Method::POST, "/subscriptions") => {
            let wanted: SubscriptionsWanted = parse(body)?;
            origin_known(wanted.origin)?;
            let how = Subscribe {
                application_server_key: wanted.application_server_key,
                host: wanted.host,
                vendor: wanted.vendor,
                aesgcm: wanted.aesgcm,
            };
            // Minutes of key generation would stop everything else on this thread.
            let inner = inner.clone();
            let made = tokio::task::spawn_blocking(move || {
                let made = inner.subscribe(wanted.origin, wanted.count, &how);
                made.iter().map(|subscription| subscription.json()).collect::<Vec<_>>()
            });
            json(&made.await.map_err(|problem| (StatusCode::INTERNAL_SERVER_ERROR, problem.to_string()))?)
        }
        (&Method::GET, "/received") => {
            let after = parts.uri.query().and_then(|query| query.strip_prefix("after=")).unwrap_or("0");
            let after = after.parse().map_err(|_| (StatusCode::BAD_REQUEST, "after is not a number".to_owned()))?;
            json(&inner.state.received_after(after))
        }
        (&Method::POST, "/faults") => {
            let wanted: FaultWanted = parse(body)?;
            if let Scope::Origin(origin) = wanted.scope {
                origin_known(origin)?;
            }
            inner.state.set_fault(wanted.scope, wanted.fault, wanted.times, wanted.every);
            done()
        }
        (&Method::DELETE, "/faults") => {
            inner.state.clear_faults(None);
            done()
        }
        (&Method::POST, "/listeners") => {
            let wanted: ListenerWanted = parse(body)?;
            origin_known(wanted.origin)?;
            inner.listen(wanted.origin, wanted.listening).await;
            done()
        }
        (&Method::GET, "/counters") => json(&inner.state.counters()),
        (&Method::GET, "/measured") => match parts.uri.query().and_then(|query| query.strip_prefix("origin=")) {
            None => json(&inner.state.measured(None)),
            Some(origin) => {
                let origin = origin.parse().map_err(|_| (StatusCode::BAD_REQUEST, "origin is not a number".to_owned()))?;
                origin_known(origin)?;
                json(&inner.state.measured(Some(origin)))
            }
        },
        (&Method::DELETE, "/measured") => {
            inner.state.reset_measured();
            done()
        }
        (&Method::POST, "/crowds") => {
            let plan: Plan = parse(body)?;
            origin_known(plan.origin)?;
            let origin = inner.state.origins[plan.origin].url.clone();
            let inner = inner.clone();
            let made = tokio::task::spawn_blocking(move || inner.add_crowd(plan).0);
            let crowd = made.await.map_err(|problem| (StatusCode::INTERNAL_SERVER_ERROR, problem.to_string()))?;
            json(&serde_json::json!({"crowd": crowd, "origin": &*origin}))
        }
        (method, path) if path.starts_with("/crowds/") => {
            let number = path["/crowds/".len()..].parse().ok();
            let crowd = number.and_then(|number| inner.state.subscriptions.read().expect("no holder panics").crowd(number));
            let Some(crowd) = crowd else { return Err((StatusCode::NOT_FOUND, "there is no such crowd".to_owned())) };
            match *method {
                Method::GET => json(&crowd.counts()),
                Method::DELETE => {
                    crowd.reset();
                    done()
                }
                _ => Err((StatusCode::METHOD_NOT_ALLOWED, "a crowd knows GET and DELETE".to_owned())),
            }
        }
        (&Method::GET, "/ca.pem") => Ok(("application/x-pem-file", inner.acceptors.authority_pem.clone())),
        _ => Err((StatusCode::NOT_FOUND, "no such command".to_owned())),
    }
}

fn json<T: serde::Serialize>(value: &T) -> Answered {
    match serde_json::to_string(value) {
        Ok(text) => Ok(("application/json", text)),
        Err(problem) => Err((StatusCode::INTERNAL_SERVER_ERROR, problem.to_string())),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, (StatusCode, String)> {
    serde_json::from_slice(body).map_err(|problem| (StatusCode::BAD_REQUEST, problem.to_string()))
}
