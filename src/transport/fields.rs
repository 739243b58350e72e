//! Header lists between HPACK and the `http` types: what is malformed, what is too large, what gRPC
//! reads in them.
//!
//! In: fields as they stood in a block. Out: a request's or response's head, or why not
//! (RFC 9113, 8.1.1, 8.2 and 8.3); and in the other direction, the fields of what we send.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};

use super::hpack::Field;

/// What RFC 9113, 6.5.2 adds to the length of each field.
const FIELD_OVERHEAD_BYTES: usize = 32;

/// What an entry of a `HeaderMap` takes, besides the 32 bytes that its list counts already, where there
/// are twice as many places as entries.
const ENTRY_BYTES: usize = 192;

/// A request without fields, in a box, with its target.
const HEAD_BYTES: usize = 768;

/// One header list, as far as it was wanted.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pseudo: Pseudo,
    pub(crate) headers: HeaderMap,
    list_bytes: usize,
    pub(crate) is_too_large: bool,
    malformed: Option<&'static str>,
    has_regular: bool,
}

#[derive(Debug, Default)]
struct Pseudo {
    method: Option<Method>,
    scheme: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    status: Option<StatusCode>,
}

impl Fields {
    /// Adds one field of a block; from `list_bytes_max` on nothing is kept.
    pub(crate) fn add(&mut self, field: &Field<'_>, list_bytes_max: usize) {
        let Field { name, value, .. } = *field;
        self.list_bytes =
            self.list_bytes.saturating_add(name.len() + value.len() + FIELD_OVERHEAD_BYTES);
        if self.list_bytes > list_bytes_max {
            // What decides how to refuse politely came first, so it is kept.
            self.is_too_large = true;
            return;
        }
        if self.malformed.is_some() {
            return;
        }
        let added = if name.first() == Some(&b':') {
            self.pseudo(name, value)
        } else {
            self.regular(field)
        };
        self.malformed = added.err();
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if self.has_regular {
            return Err("pseudo_header_after_regular");
        }
        let pseudo = &mut self.pseudo;
        match name {
            b":method" => {
                let method = Method::from_bytes(value).map_err(|_| "invalid_method")?;
                once(&mut pseudo.method, method)
            }
            b":scheme" => once(&mut pseudo.scheme, value.to_vec()),
            b":authority" => once(&mut pseudo.authority, value.to_vec()),
            b":path" => once(&mut pseudo.path, value.to_vec()),
            b":status" => {
                let status = StatusCode::from_bytes(value).map_err(|_| "invalid_status")?;
                once(&mut pseudo.status, status)
            }
            _ => Err("unknown_pseudo_header"),
        }
    }

    fn regular(&mut self, field: &Field<'_>) -> Result<(), &'static str> {
        let Field { name, value, never_indexed } = *field;
        self.has_regular = true;
        if name.iter().any(u8::is_ascii_uppercase) {
            return Err("upper_case_header_name");
        }
        let name = HeaderName::from_bytes(name).map_err(|_| "invalid_header_name")?;
        let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if blank(value.first()) || blank(value.last()) {
            return Err("header_value_with_blanks_around");
        }
        let mut value = HeaderValue::from_bytes(value).map_err(|_| "invalid_header_value")?;
        value.set_sensitive(never_indexed);
        if is_of_connection(&name) {
            return Err("connection_specific_header");
        }
        if name == TE && !value.as_bytes().eq_ignore_ascii_case(b"trailers") {
            return Err("te_other_than_trailers");
        }
        // A map of more than 32,768 entries would panic; the list's limit lies far below.
        self.headers.try_append(name, value).map_err(|_| "too_many_headers")?;
        Ok(())
    }

    /// The head of a request (RFC 9113, 8.3.1). Err: why it is malformed.
    pub(crate) fn into_request(self) -> Result<Request<()>, &'static str> {
        self.check()?;
        let Pseudo { method, scheme, authority, path, status } = self.pseudo;
        if status.is_some() {
            return Err("status_in_request");
        }
        let method = method.ok_or("no_method")?;
        let uri = if method == Method::CONNECT {
            if scheme.is_some() || path.is_some() {
                return Err("connect_with_scheme_or_path");
            }
            Uri::from_maybe_shared(authority.ok_or("connect_without_authority")?)
                .map_err(|_| "invalid_authority")?
        } else {
            let scheme = scheme.ok_or("no_scheme")?;
            let path = path.filter(|path| !path.is_empty()).ok_or("no_path")?;
            uri(&scheme, authority.as_deref(), &self.headers, &path)?
        };
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        join_cookies(request.headers_mut());
        Ok(request)
    }

    /// The head of a response (RFC 9113, 8.3.2). Err: why it is malformed.
    pub(crate) fn into_response(self) -> Result<(StatusCode, HeaderMap), &'static str> {
        self.check()?;
        let Pseudo { method, scheme, authority, path, status } = self.pseudo;
        if method.is_some() || scheme.is_some() || authority.is_some() || path.is_some() {
            return Err("request_pseudo_header_in_response");
        }
        Ok((status.ok_or("no_status")?, self.headers))
    }

    /// Trailers have no pseudo-headers (RFC 9113, 8.1). Err: why they are malformed.
    pub(crate) fn into_trailers(self) -> Result<HeaderMap, &'static str> {
        self.check()?;
        let Pseudo { method, scheme, authority, path, status } = self.pseudo;
        let none = method.is_none() && scheme.is_none() && authority.is_none();
        if !none || path.is_some() || status.is_some() {
            return Err("pseudo_header_in_trailers");
        }
        Ok(self.headers)
    }

    /// About what the list takes in memory, rather more: a map's entry for each field, in tables that
    /// grow by doubling, and what stands in them.
    pub(crate) fn bytes(&self) -> usize {
        self.list_bytes + self.headers.len() * ENTRY_BYTES + HEAD_BYTES
    }

    /// Whether it begins a request, well-formed or not: trailers have no pseudo-headers.
    pub(crate) fn is_head(&self) -> bool {
        self.pseudo.method.is_some() || self.pseudo.path.is_some()
    }

    fn check(&self) -> Result<(), &'static str> {
        self.malformed.map_or(Ok(()), Err)
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), &'static str> {
    if place.is_some() {
        return Err("repeated_pseudo_header");
    }
    *place = Some(value);
    Ok(())
}

/// One cookie field of several: HTTP/2 may split it, nobody else knows that (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&HeaderValue> = headers.get_all(COOKIE).iter().collect();
    if crumbs.len() < 2 {
        return;
    }
    let is_sensitive = crumbs.iter().any(|crumb| crumb.is_sensitive());
    let crumbs: Vec<&[u8]> = crumbs.into_iter().map(HeaderValue::as_bytes).collect();
    let mut cookie =
        HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).expect("values, joined by visible bytes");
    cookie.set_sensitive(is_sensitive);
    headers.insert(COOKIE, cookie);
}

/// Fields that mean something to HTTP/1.1 only (RFC 9113, 8.2.2).
pub(crate) fn is_of_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
}

/// Length of a header list as it is sent (RFC 9113, 6.5.2): pseudo-headers, then fields.
pub(crate) fn list_bytes<'a>(
    pseudo: impl IntoIterator<Item = PseudoField<'a>>,
    headers: &HeaderMap,
) -> u64 {
    let field =
        |name: &[u8], value: &[u8]| (name.len() + value.len() + FIELD_OVERHEAD_BYTES) as u64;
    let pseudo: u64 = pseudo.into_iter().map(|(name, value)| field(name, value)).sum();
    let sent = headers.iter().filter(|(name, _)| !is_of_connection(name));
    pseudo
        + sent.map(|(name, value)| field(name.as_str().as_bytes(), value.as_bytes())).sum::<u64>()
}

/// Name and value.
pub(crate) type PseudoField<'a> = (&'a [u8], &'a [u8]);

/// The pseudo-header of a response that is sent (RFC 9113, 8.3.2).
pub(crate) fn pseudo_of_response(status: &StatusCode) -> [PseudoField<'_>; 1] {
    [(b":status", status.as_str().as_bytes())]
}

/// The pseudo-headers of a request that is sent (RFC 9113, 8.3.1).
pub(crate) fn pseudo_of_request(request: &Request<()>) -> impl Iterator<Item = PseudoField<'_>> {
    let uri = request.uri();
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = uri.authority().map_or("", Authority::as_str);
    [
        (&b":method"[..], request.method().as_str().as_bytes()),
        (b":scheme", scheme.as_bytes()),
        (b":path", path.as_bytes()),
        (b":authority", authority.as_bytes()),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
}

/// The target. An `:authority` (or `host`) that is missing or odd costs nobody a stream: it is left out.
fn uri(
    scheme: &[u8],
    authority: Option<&[u8]>,
    headers: &HeaderMap,
    path: &[u8],
) -> Result<Uri, &'static str> {
    let scheme = Scheme::try_from(scheme).map_err(|_| "invalid_scheme")?;
    let path = match path {
        b"*" => PathAndQuery::from_static("*"),
        [b'/', ..] => PathAndQuery::try_from(path).map_err(|_| "invalid_path")?,
        _ => return Err("invalid_path"),
    };
    let authority = authority
        .or_else(|| headers.get(HOST).map(HeaderValue::as_bytes))
        .and_then(|authority| Authority::try_from(authority).ok());
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path);
    if authority.is_some() {
        parts.scheme = Some(scheme);
        parts.authority = authority;
    }
    Uri::from_parts(parts).map_err(|_| "invalid_target")
}

/// The length that a head announces. Err: it is not a number, or two that differ.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(None) };
    if lengths.any(|other| other != first) {
        return Err("content_lengths_differ");
    }
    let digits = first.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("invalid_content_length");
    }
    let length = first.to_str().ok().and_then(|length| length.parse().ok());
    length.map(Some).ok_or("invalid_content_length")
}

/// Whether a head is gRPC's: `application/grpc` alone, with a subtype or with parameters.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.len() >= GRPC.len()
            && value[..GRPC.len()].eq_ignore_ascii_case(GRPC)
            && matches!(value.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
    })
}

/// The time that `grpc-timeout` gives (gRPC over HTTP/2, "Timeout": at most 8 digits and a unit).
///
/// Err: the header is there but says nothing that the specification knows.
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, &'static str> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let bad = "invalid grpc-timeout: need 1 to 8 digits and one of H, M, S, m, u, n";
    let (unit, digits) = value.as_bytes().split_last().ok_or(bad)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let amount = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Ok(Some(match unit {
        b'H' => Duration::from_secs(amount * 3_600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return Err(bad),
    }))
}

/// A status message as a header value (gRPC over HTTP/2, "Responses": percent-encoded UTF-8).
pub(crate) fn grpc_message(message: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => {
                encoded.push('%');
                encoded.extend([byte >> 4, byte & 15].map(|digit| {
                    char::from_digit(digit.into(), 16).unwrap_or('0').to_ascii_uppercase()
                }));
            }
        }
    }
    HeaderValue::from_str(&encoded).expect("printable ASCII is a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_takes_no_more_memory_than_it_counts() {
        let names: Vec<String> = (0..3_000).map(|n| format!("x-{n:04}")).collect();
        let check = |count: usize, distinct: usize, value: &[u8]| {
            let mut bytes = 0;
            let taken = allocation_counter::measure(|| {
                let mut fields = Fields::default();
                let mut add = |name: &[u8], value: &[u8]| {
                    fields.add(&Field { name, value, never_indexed: false }, usize::MAX);
                };
                for (name, value) in
                    [(":method", "POST"), (":scheme", "http"), (":path", "/a.long.enough.One/Call")]
                {
                    add(name.as_bytes(), value.as_bytes());
                }
                for n in 0..count {
                    add(names[n % distinct].as_bytes(), value);
                }
                bytes = fields.bytes();
                let request = fields.into_request().unwrap();
                std::mem::forget(Box::new(request.map(|()| [0_usize; 4])));
            });
            let taken = usize::try_from(taken.bytes_current).unwrap();
            assert!(taken <= bytes, "{count} of {distinct} with {value:?}: {taken} of {bytes}");
            if count > 10 {
                assert!(
                    taken > bytes / 5,
                    "{count} of {distinct}: {taken} of {bytes}: too cautious"
                );
            }
        };
        for count in [0, 1, 7, 12, 13, 24, 25, 48, 49, 100, 193, 232, 1_000, 3_000] {
            for distinct in [1, 2, 13, 1_000, 3_000] {
                check(count, distinct, b"");
                check(count, distinct, b"a value of some length");
            }
        }
    }

    const REQUEST: [(&str, &str); 3] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/a/b")];

    fn fields(list: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in list {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            fields.add(&Field { name, value, never_indexed: false }, 8_192);
        }
        fields
    }

    fn request(more: &[(&str, &str)]) -> Result<Request<()>, &'static str> {
        fields(&[&REQUEST, more].concat()).into_request()
    }

    #[test]
    fn malformed_requests_are_named() {
        let check = |more: &[(&str, &str)], expected| {
            assert_eq!(request(more).err(), expected, "{more:?}");
        };
        check(&[], None);
        check(&[(":path", "/c")], Some("repeated_pseudo_header"));
        check(&[(":proto", "x")], Some("unknown_pseudo_header"));
        check(&[(":status", "200")], Some("status_in_request"));
        check(&[("a", "b"), (":authority", "c")], Some("pseudo_header_after_regular"));
        check(&[("A", "b")], Some("upper_case_header_name"));
        check(&[("a b", "c")], Some("invalid_header_name"));
        check(&[("a", "b\nc")], Some("invalid_header_value"));
        check(&[("a", " b")], Some("header_value_with_blanks_around"));
        check(&[("connection", "close")], Some("connection_specific_header"));
        check(&[("transfer-encoding", "chunked")], Some("connection_specific_header"));
        check(&[("te", "gzip")], Some("te_other_than_trailers"));
        check(&[("te", "trailers")], None);
        check(&[(":authority", "what is this")], None);
        let check_whole = |list: &[(&str, &str)], expected| {
            assert_eq!(fields(list).into_request().err(), expected, "{list:?}");
        };
        check_whole(&REQUEST[1..], Some("no_method"));
        check_whole(&REQUEST[..2], Some("no_path"));
        check_whole(&[REQUEST[0], REQUEST[2]], Some("no_scheme"));
        check_whole(&[REQUEST[0], REQUEST[1], (":path", "")], Some("no_path"));
        check_whole(&[REQUEST[0], REQUEST[1], (":path", "a")], Some("invalid_path"));
        check_whole(&[(":method", "CONNECT"), (":authority", "a:1")], None);
        check_whole(&[(":method", "CONNECT")], Some("connect_without_authority"));
    }

    #[test]
    fn the_authority_falls_back_to_the_host() {
        let authority = |more: &[(&str, &str)]| {
            request(more).unwrap().uri().authority().map(ToString::to_string)
        };
        assert_eq!(authority(&[(":authority", "a:1"), ("host", "b")]).as_deref(), Some("a:1"));
        assert_eq!(authority(&[("host", "b")]).as_deref(), Some("b"));
        assert_eq!(authority(&[("host", "no such host")]), None);
    }

    #[test]
    fn a_list_over_its_limit_is_not_kept() {
        let mut fields = fields(&REQUEST);
        for _ in 0..1_000 {
            fields.add(&Field { name: b"a", value: &[b'x'; 100], never_indexed: false }, 1_000);
        }
        assert!(fields.is_too_large);
        assert!(fields.headers.len() < 10);
    }

    #[test]
    fn trailers_and_responses_have_their_own_rules() {
        assert!(fields(&[("grpc-status", "0")]).into_trailers().is_ok());
        let pseudo = fields(&[(":path", "/")]).into_trailers();
        assert_eq!(pseudo.err(), Some("pseudo_header_in_trailers"));
        assert_eq!(fields(&[(":status", "200")]).into_response().unwrap().0, 200);
        assert_eq!(fields(&[("a", "b")]).into_response().err(), Some("no_status"));
        let mixed = fields(&[(":status", "200"), (":path", "/")]).into_response();
        assert_eq!(mixed.err(), Some("request_pseudo_header_in_response"));
    }

    #[test]
    fn content_lengths_must_agree() {
        let check = |values: &[&'static str], expected: Result<Option<u64>, ()>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_LENGTH, HeaderValue::from_static(value));
            }
            assert_eq!(content_length(&headers).map_err(|_| ()), expected, "{values:?}");
        };
        check(&[], Ok(None));
        check(&["12"], Ok(Some(12)));
        check(&["12", "12"], Ok(Some(12)));
        check(&["12", "13"], Err(()));
        check(&["+1"], Err(()));
        check(&[""], Err(()));
        check(&["99999999999999999999"], Err(()));
    }

    #[test]
    fn timeouts_have_a_unit_and_at_most_eight_digits() {
        let check = |value: &'static str, expected: Result<Duration, ()>| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(value));
            let found = grpc_timeout(&headers).map(Option::unwrap).map_err(|_| ());
            assert_eq!(found, expected, "{value}");
        };
        check("1H", Ok(Duration::from_secs(3_600)));
        check("2M", Ok(Duration::from_secs(120)));
        check("3S", Ok(Duration::from_secs(3)));
        check("99999999m", Ok(Duration::from_millis(99_999_999)));
        check("5u", Ok(Duration::from_micros(5)));
        check("0n", Ok(Duration::ZERO));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1 S", "1.5S"] {
            check(bad, Err(()));
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(grpc_message("50% späť\n"), "50%25 sp%C3%A4%C5%A5%0A");
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        let check = |value: &'static str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_grpc(&headers), expected, "{value}");
        };
        check("application/grpc", true);
        check("application/grpc+proto", true);
        check("application/grpc;charset=utf-8", true);
        check("Application/gRPC", true);
        check("application/grpc-web", false);
        check("application/grpcx", false);
        check("application/json", false);
        check("", false);
    }
}
