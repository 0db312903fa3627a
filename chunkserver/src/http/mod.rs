//! HTTP: `/metrics`, `/api/status`, `/healthz` and the status page.
//!
//! Runs on the control thread and answers from the published snapshot alone. GET only. The Host header is
//! checked, so that a web page elsewhere cannot read it through a name that it points here (DNS rebinding):
//! an address, `localhost` or this machine's own name. At most [`CONNECTIONS_MAX`] connections, each with a
//! deadline for its headers and for its whole life. There is nothing to change here and no password.

pub mod metrics;
mod page;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::control::Plane;
use crate::dying;
use crate::exit::Failure;

/// Connections served at a time; the next is answered 503.
pub const CONNECTIONS_MAX: usize = 32;
/// Headers come within this.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// No connection lives longer; scrapers and the page simply connect again.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(60);
/// hyper's least is 8 KiB.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening socket.
#[derive(Debug)]
pub struct HttpServer {
    listener: std::net::TcpListener,
    host_name: String,
}

impl HttpServer {
    /// Binds it. `host_name`: this machine's, allowed in Host.
    pub fn bind(address: SocketAddr, host_name: &str) -> Result<HttpServer, Failure> {
        let option = "admin.http (\"\" is none)";
        let listener = dying::listen("http", address, option, || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        Ok(HttpServer {
            listener,
            host_name: host_name.to_ascii_lowercase(),
        })
    }

    /// Where it listens, with the port chosen if 0 was asked for.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever. Must be called within a tokio runtime.
    pub(crate) async fn serve(self, plane: Arc<Plane>) {
        let listener = match TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(e) => {
                tracing::error!("http: {e}");
                return;
            }
        };
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let host_name: Arc<str> = Arc::from(self.host_name);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match slots.clone().try_acquire_owned() {
                    Ok(slot) => {
                        tokio::spawn(connection(stream, slot, plane.clone(), host_name.clone()));
                    }
                    Err(_) => {
                        tokio::spawn(turn_away(stream));
                    }
                },
                Err(e) => {
                    tracing::warn!("http: accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
    plane: Arc<Plane>,
    host_name: Arc<str>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &plane, &host_name);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(HEADER_BYTES_MAX);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    // Garbage, a peer that hangs up, a deadline: all end the connection and are nobody's concern.
    let _ = tokio::time::timeout(CONNECTION_DEADLINE, served).await;
    drop(slot);
}

/// One connection too many: say so, without reading anything.
async fn turn_away(mut stream: TcpStream) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\n\
        Content-Length: 21\r\n\r\ntoo many connections\n";
    let _ = tokio::time::timeout(HEADER_DEADLINE, async {
        stream.write_all(ANSWER).await?;
        stream.shutdown().await
    })
    .await;
}

fn respond(request: &Request<Incoming>, plane: &Plane, host_name: &str) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is answered here\n",
        );
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    if !host_allowed(request, host_name) {
        return text(
            StatusCode::FORBIDDEN,
            "this Host is not answered: use the address, localhost or the machine's own name\n",
        );
    }
    match request.uri().path() {
        "/" => {
            let mut response = body(
                StatusCode::OK,
                "text/html; charset=utf-8",
                page::render(&plane.status()),
            );
            // The page needs its own style and script, and to fetch from here; nothing else.
            response.headers_mut().insert(
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static(
                    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                     frame-ancestors 'none'",
                ),
            );
            response
        }
        "/api/status" => match serde_json::to_string(&plane.status()) {
            Ok(json) => body(StatusCode::OK, "application/json", json + "\n"),
            Err(_) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "status cannot be written\n",
            ),
        },
        "/metrics" => body(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics::render(
                &plane.status(),
                &plane.snapshot().metrics,
                &plane.events().counts(),
            ),
        ),
        "/healthz" => match plane.status() {
            s if s.is_healthy() => text(StatusCode::OK, "ok\n"),
            s => {
                let why = format!("state {}, master {}\n", s.state, s.master.state);
                body(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "text/plain; charset=utf-8",
                    why,
                )
            }
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /, /metrics, /api/status and /healthz\n",
        ),
    }
}

/// Whether the request is for an address, `localhost` or our own name, by its one Host header.
fn host_allowed(request: &Request<Incoming>, host_name: &str) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    // In absolute form the URI counts (RFC 9112 §3.2.2), so it must pass as well.
    name_allowed(host, host_name)
        && request
            .uri()
            .authority()
            .is_none_or(|a| name_allowed(a.as_str(), host_name))
}

fn name_allowed(host: &str, host_name: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let short = host_name.split('.').next().unwrap_or_default();
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || (!host_name.is_empty() && (name == host_name || name == short))
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    body(status, "text/plain; charset=utf-8", text)
}

fn body(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in [
            "127.0.0.1",
            "127.0.0.1:9424",
            "[::1]:9424",
            "localhost:1",
            "LOCALHOST",
            "chunk1",
            "chunk1.site.example:9424",
        ] {
            assert!(name_allowed(good, "chunk1.site.example"), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "chunk1.evil.example",
            "[evil]",
            ":9424",
        ] {
            assert!(!name_allowed(bad, "chunk1.site.example"), "{bad}");
            assert!(!name_allowed(bad, ""), "{bad}");
        }
    }
}
