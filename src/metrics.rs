//! The metrics page: counters of one server, in the OpenMetrics text format, over HTTP/1.1.
//!
//! In: a listener of its own and the [`Counted`]. Out: `GET /metrics`. A page cannot slow the echo: it
//! reads counters and takes no lock that a stream takes.

use std::convert::Infallible;
use std::fmt;
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
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::stats::{Snapshot, Stats};
use crate::transport::{Counters, CountersSnapshot};

/// Connections to the page at once; more wait in the backlog.
const CONNECTIONS_MAX: usize = 16;

/// A reader that has not asked for the page and read it by then is let go.
const READER_LIMIT: Duration = Duration::from_secs(10);

const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the page shows.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    pub(crate) stats: Arc<Stats>,
    /// Of the inline transport; tonic's tells nothing.
    pub(crate) transport: Option<Arc<Counters>>,
}

/// Serves the page until dropped.
pub(crate) async fn serve(listener: TcpListener, counted: Counted) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("never closed");
        match listener.accept().await {
            Ok((tcp, _)) => {
                let counted = counted.clone();
                tokio::spawn(async move {
                    let _place = place;
                    serve_connection(tcp, counted).await;
                });
            }
            // Out of descriptors, most likely: the gRPC side has said so.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(tcp: TcpStream, counted: Counted) {
    let page = service_fn(|request| {
        let response = respond(&request, &counted);
        async { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    // One page for each connection: who asks for many and reads none would keep its place.
    http.timer(TokioTimer::new()).keep_alive(false);
    // What ends this connection early is the reader's affair.
    let _ = timeout(READER_LIMIT, http.serve_connection(TokioIo::new(tcp), page)).await;
}

fn respond(request: &Request<Incoming>, counted: &Counted) -> Response<Full<Bytes>> {
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        let mut response = Response::new(Full::from("the page is GET /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Full::from(page(counted.snapshots())));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(CONTENT));
    response
}

impl Counted {
    fn snapshots(&self) -> Snapshots {
        let transport = self.transport.as_ref().map(|counters| counters.snapshot());
        Snapshots { server: self.stats.snapshot(), transport }
    }
}

fn page(snapshots: Snapshots) -> String {
    let mut registry = Registry::with_prefix("bidi_echo");
    registry.register_collector(Box::new(snapshots));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("a String takes whatever is written");
    page
}

#[derive(Debug)]
struct Snapshots {
    server: Snapshot,
    transport: Option<CountersSnapshot>,
}

impl Collector for Snapshots {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut page = Page(encoder);
        page.server(&self.server)?;
        self.transport.as_ref().map_or(Ok(()), |counters| page.transport(counters))
    }
}

/// Where metrics are written, one after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn server(&mut self, snapshot: &Snapshot) -> Result<(), fmt::Error> {
        let Snapshot {
            connections_accepted,
            connections_open,
            streams_open,
            streams_finished,
            messages_in,
            messages_out,
            message_bytes_in,
            message_bytes_out,
        } = snapshot;
        self.gauge("connections_open", "Connections open now", *connections_open)?;
        self.gauge("streams_open", "Streams open now", *streams_open)?;
        self.counter("connections_accepted", "Connections accepted", *connections_accepted)?;
        self.counter("messages_in", "Messages that handlers took", *messages_in)?;
        self.counter("messages_out", "Messages that handlers gave back", *messages_out)?;
        self.bytes("message_in", "Encoded bytes of the messages in", *message_bytes_in)?;
        self.bytes("message_out", "Encoded bytes of the messages out", *message_bytes_out)?;
        let finished = streams_finished.iter().map(|(outcome, count)| (outcome.name(), *count));
        let help = "Streams that ended, by gRPC status";
        self.family("streams_finished", help, "status", finished)
    }

    fn transport(&mut self, counters: &CountersSnapshot) -> Result<(), fmt::Error> {
        let CountersSnapshot {
            streams_opened,
            streams_closed,
            streams_reset,
            streams_broken,
            streams_refused,
            streams_expired,
            panics,
            reads_kept,
            buffered_bytes,
            goaways,
        } = counters;
        let opened = "HTTP/2 streams that began";
        self.counter("transport_streams_opened", opened, *streams_opened)?;
        let closed = "HTTP/2 streams that are over";
        self.counter("transport_streams_closed", closed, *streams_closed)?;
        let reset = "Streams that clients reset while they were open";
        self.counter("transport_streams_reset", reset, *streams_reset)?;
        let broken = "Streams on which clients broke the protocol";
        self.counter("transport_streams_broken", broken, *streams_broken)?;
        let refused = "Streams refused because there were too many, because of a drain, or for their header list";
        self.counter("transport_streams_refused", refused, *streams_refused)?;
        let help = "Bytes that all connections keep";
        let metric = ConstGauge::new(*buffered_bytes as u64);
        let (name, unit) = ("transport_buffered", Some(&Unit::Bytes));
        metric.encode(self.0.encode_descriptor(name, help, unit, metric.metric_type())?)?;
        let panics_help = "Panics of handlers, each of which cost one stream";
        self.counter("transport_panics", panics_help, *panics)?;
        let kept = "Read buffers that a service held on to; since the first, payloads are copied";
        self.counter("transport_reads_kept", kept, *reads_kept)?;
        let expired = "Streams whose time was over, by the timer that said so";
        let counts = streams_expired.iter().map(|(reason, count)| (*reason, *count));
        self.family("transport_streams_expired", expired, "reason", counts)?;
        let ended =
            "Connections ended with GOAWAY, by the flood, timer or error that was the reason";
        let counts = goaways.iter().map(|(reason, count)| (*reason, *count));
        self.family("transport_goaways", ended, "reason", counts)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let metric = ConstGauge::new(value);
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        self.counter_of(None, name, help, value)
    }

    fn bytes(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        self.counter_of(Some(&Unit::Bytes), name, help, value)
    }

    fn counter_of(
        &mut self,
        unit: Option<&Unit>,
        name: &str,
        help: &str,
        value: u64,
    ) -> Result<(), fmt::Error> {
        let metric = ConstCounter::new(value);
        metric.encode(self.0.encode_descriptor(name, help, unit, metric.metric_type())?)
    }

    /// One counter for each value of `label` that happened.
    fn family(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counts: impl Iterator<Item = (&'static str, u64)>,
    ) -> Result<(), fmt::Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in counts {
            ConstCounter::new(count).encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::stats::Outcome;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;
    use tonic::Code;

    /// What a page's reader gets that says this and reads until the end.
    async fn heard(said: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counted = Counted { stats: Arc::new(Stats::default()), transport: None };
        let serving = tokio::spawn(serve(listener, counted));
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(said).await.unwrap();
        let mut heard = String::new();
        // Whatever is sent beyond what is read resets the connection at its end.
        let _ = tcp.read_to_string(&mut heard).await;
        serving.abort();
        heard
    }

    #[tokio::test]
    async fn a_reader_gets_one_page_however_many_it_asks_for() {
        let page = heard(&b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3)).await;
        assert_eq!(page.matches("HTTP/1.1 200 OK").count(), 1, "{page}");
        assert!(page.ends_with("# EOF\n"), "{page}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_does_not_ask_is_let_go() {
        let begin = Instant::now();
        assert_eq!(heard(b"GET /metrics HTTP/1.1\r\n").await, "");
        assert!(begin.elapsed() >= READER_LIMIT);
    }

    #[test]
    fn the_page_names_every_counter_with_its_unit() {
        let server = Snapshot {
            connections_accepted: 3,
            connections_open: 1,
            streams_open: 2,
            streams_finished: vec![(Outcome::Grpc(Code::Ok), 5), (Outcome::NotGrpc, 1)],
            messages_in: 11,
            messages_out: 10,
            message_bytes_in: 110,
            message_bytes_out: 100,
        };
        let transport = CountersSnapshot {
            streams_opened: 20,
            streams_closed: 19,
            streams_reset: 6,
            streams_broken: 7,
            streams_refused: 8,
            streams_expired: BTreeMap::from([("deadline", 4), ("stalled", 1)]),
            panics: 9,
            reads_kept: 10,
            buffered_bytes: 77,
            goaways: BTreeMap::from([("handshake_timeout", 1), ("too_many_pings", 2)]),
        };
        let page_without = page(Snapshots { server: server.clone(), transport: None });
        assert!(!page_without.contains("transport"), "{page_without}");
        let page = page(Snapshots { server, transport: Some(transport) });
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
            "bidi_echo_transport_streams_opened_total 20",
            "bidi_echo_transport_streams_closed_total 19",
            "bidi_echo_transport_streams_reset_total 6",
            "bidi_echo_transport_streams_broken_total 7",
            "bidi_echo_transport_streams_refused_total 8",
            "bidi_echo_transport_streams_expired_total{reason=\"deadline\"} 4",
            "bidi_echo_transport_streams_expired_total{reason=\"stalled\"} 1",
            "bidi_echo_transport_panics_total 9",
            "bidi_echo_transport_reads_kept_total 10",
            "bidi_echo_transport_buffered_bytes 77",
            "bidi_echo_transport_goaways_total{reason=\"handshake_timeout\"} 1",
            "bidi_echo_transport_goaways_total{reason=\"too_many_pings\"} 2",
            "# EOF",
        ] {
            assert!(page.lines().any(|found| found == line), "no line {line:?} in:\n{page}");
        }
        let lines_of = |kind: &str| page.lines().filter(|line| line.starts_with(kind)).count();
        assert_eq!(lines_of("# HELP"), lines_of("# TYPE"), "{page}");
    }
}
