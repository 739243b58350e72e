//! The failures that the transport itself answers a stream with, and how each protocol says them.
//!
//! In: which one, and what has left of the answer. Out: a status in headers or trailers, or a reset.
//! Runs no user code.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::super::connection::Expiry;
use super::super::fields;
use super::super::frame::ErrorCode;
use super::super::wire::{Core, Ending, Wire};

/// Ends our half with a failure, in the words of the protocol that the client speaks.
pub(super) fn fail(core: &mut Core, is_grpc: bool, wire: &mut Wire, failure: Failure) {
    let mut headers = HeaderMap::new();
    if is_grpc {
        let status = HeaderValue::from(failure.code as u16);
        headers.insert("grpc-status", status);
        headers.insert("grpc-message", fields::grpc_message(failure.message));
    }
    if !core.headers_sent {
        let mut status = failure.http;
        if is_grpc {
            status = StatusCode::OK;
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        }
        wire.response(core, status, &headers, true);
    } else if is_grpc {
        wire.end(core, Ending::Trailers(Box::new(headers)));
    } else {
        // HTTP has no way to take a success back but this.
        wire.reset(core, ErrorCode::INTERNAL_ERROR);
    }
}

/// gRPC's codes that the transport itself gives (grpc/grpc, doc/statuscodes.md).
#[derive(Clone, Copy, Debug)]
pub(super) enum Code {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    ResourceExhausted = 8,
    Internal = 13,
    Unavailable = 14,
}

/// A failure of the transport or of a service, as both protocols say it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    http: StatusCode,
    message: &'static str,
}

pub(super) const PANICKED: Failure = Failure {
    code: Code::Internal,
    http: StatusCode::INTERNAL_SERVER_ERROR,
    message: "the handler panicked",
};

pub(super) const FAILED: Failure = Failure {
    code: Code::Internal,
    http: StatusCode::INTERNAL_SERVER_ERROR,
    message: "the handler failed",
};

pub(super) const BAD_TIMEOUT: Failure = Failure {
    code: Code::InvalidArgument,
    http: StatusCode::BAD_REQUEST,
    message: "invalid grpc-timeout: need 1 to 8 digits and one of H, M, S, m, u, n",
};

pub(super) const HEADERS_TOO_LARGE: Failure = Failure {
    code: Code::ResourceExhausted,
    http: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    message: "the request's header list is larger than this server takes",
};

pub(super) const ANSWER_TOO_LARGE: Failure = Failure {
    code: Code::ResourceExhausted,
    http: StatusCode::INTERNAL_SERVER_ERROR,
    message: "the answer's header list is larger than the client takes, or than this server sends",
};

pub(super) fn expired(why: Expiry) -> Failure {
    let (code, http, message) = match why {
        Expiry::Deadline => (
            Code::DeadlineExceeded,
            StatusCode::GATEWAY_TIMEOUT,
            "the deadline of the request (grpc-timeout) is over",
        ),
        Expiry::Stalled => (
            Code::ResourceExhausted,
            StatusCode::REQUEST_TIMEOUT,
            "the client did not open its flow-control window in time",
        ),
        Expiry::Idle => {
            (Code::Unavailable, StatusCode::REQUEST_TIMEOUT, "the stream was idle for too long")
        }
        Expiry::Unread => (
            Code::ResourceExhausted,
            StatusCode::SERVICE_UNAVAILABLE,
            "the request was not read in time, and its connection's flow-control window was used up",
        ),
        Expiry::Drained => (
            Code::Unavailable,
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is shutting down; open the stream elsewhere",
        ),
    };
    Failure { code, http, message }
}
