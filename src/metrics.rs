//! The metrics page: counters of one server, in the OpenMetrics text format, over HTTP/1.1.
//!
//! In: a listener of its own and the [`Stats`]. Out: `GET /metrics`. A page cannot slow the echo: it
//! reads counters and takes no lock that a stream takes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::stats::{Snapshot, Stats};

/// Connections to the page at once; more wait in the backlog.
const CONNECTIONS_MAX: usize = 16;

/// A reader of the page that is silent for this long is let go.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the page until dropped.
pub(crate) async fn serve(listener: TcpListener, stats: Arc<Stats>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("never closed");
        match listener.accept().await {
            Ok((tcp, _)) => {
                let stats = stats.clone();
                tokio::spawn(async move {
                    let _place = place;
                    serve_connection(tcp, stats).await;
                });
            }
            // Out of descriptors, most likely: the gRPC side has said so.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(tcp: TcpStream, stats: Arc<Stats>) {
    let page = service_fn(|request| {
        let response = respond(&request, &stats);
        async { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_LIMIT);
    // What ends this connection early is the reader's affair.
    let _ = http.serve_connection(TokioIo::new(tcp), page).await;
}

fn respond(request: &Request<Incoming>, stats: &Stats) -> Response<Full<Bytes>> {
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        let mut response = Response::new(Full::from("the page is GET /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Full::from(page(stats.snapshot())));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(CONTENT));
    response
}

fn page(snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix("bidi_echo");
    registry.register_collector(Box::new(Counted(snapshot)));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("a String takes whatever is written");
    page
}

#[derive(Debug)]
struct Counted(Snapshot);

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Snapshot {
            connections_accepted,
            connections_open,
            streams_open,
            streams_finished,
            messages_in,
            messages_out,
            message_bytes_in,
            message_bytes_out,
        } = &self.0;
        let mut gauge = |name, help, value: u64| {
            let metric = ConstGauge::new(value);
            let gauge = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
            metric.encode(gauge)
        };
        gauge("connections_open", "Connections open now", *connections_open)?;
        gauge("streams_open", "Streams open now", *streams_open)?;
        let mut counter = |name, help, unit: Option<&Unit>, value: u64| {
            let metric = ConstCounter::new(value);
            let counter = encoder.encode_descriptor(name, help, unit, metric.metric_type())?;
            metric.encode(counter)
        };
        counter("connections_accepted", "Connections accepted", None, *connections_accepted)?;
        counter("messages_in", "Messages that handlers took", None, *messages_in)?;
        counter("messages_out", "Messages that handlers gave back", None, *messages_out)?;
        let bytes = Some(&Unit::Bytes);
        counter("message_in", "Encoded bytes of the messages in", bytes, *message_bytes_in)?;
        counter("message_out", "Encoded bytes of the messages out", bytes, *message_bytes_out)?;
        let help = "Streams that ended, by gRPC status";
        let kind = prometheus_client::metrics::MetricType::Counter;
        let mut finished = encoder.encode_descriptor("streams_finished", help, None, kind)?;
        for (outcome, count) in streams_finished {
            let labels = [("status", outcome.name())];
            ConstCounter::new(*count).encode(finished.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Outcome;
    use tonic::Code;

    #[test]
    fn the_page_names_every_counter_with_its_unit() {
        let page = page(Snapshot {
            connections_accepted: 3,
            connections_open: 1,
            streams_open: 2,
            streams_finished: vec![(Outcome::Grpc(Code::Ok), 5), (Outcome::NotGrpc, 1)],
            messages_in: 11,
            messages_out: 10,
            message_bytes_in: 110,
            message_bytes_out: 100,
        });
        for line in [
            "bidi_echo_connections_open 1",
            "bidi_echo_connections_accepted_total 3",
            "bidi_echo_streams_open 2",
            "bidi_echo_streams_finished_total{status=\"OK\"} 5",
            "bidi_echo_streams_finished_total{status=\"NOT_GRPC\"} 1",
            "bidi_echo_messages_in_total 11",
            "bidi_echo_messages_out_total 10",
            "bidi_echo_message_in_bytes_total 110",
            "bidi_echo_message_out_bytes_total 100",
            "# EOF",
        ] {
            assert!(page.lines().any(|found| found == line), "no line {line:?} in:\n{page}");
        }
    }
}
