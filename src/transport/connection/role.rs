//! What a connection asks of its role: the server's ([`Serving`](super::super::serving::Serving)) or the
//! client's ([`Calling`](super::super::client::Calling)).

use std::sync::Arc;
use std::task::Context;

use bytes::Bytes;
use http::Request;

use super::super::fields::Fields;
use super::super::stream::{BodyError, Kept, Key, Wakes};
use super::super::wire::{Core, Wire};

/// What differs between server and client, and everything that streams are to them.
pub(crate) trait Role {
    /// One stream's application side.
    type App;

    /// Whether we are the server.
    const IS_SERVER: bool;

    /// The peer opened a stream (servers). Runs no user code.
    fn accept(&mut self, core: &mut Core, wakes: &Arc<Wakes>, request: Request<()>) -> Self::App;

    /// A stream to open (clients), if there is one; it will have `key`. Without room for it none is
    /// given, but `cx` is still woken when there will never be one again.
    fn poll_open(
        &mut self,
        key: Key,
        wakes: &Arc<Wakes>,
        has_room: bool,
        cx: &mut Context<'_>,
    ) -> Option<Opening<Self::App>>;

    /// A header block came for a stream that is there: response head or trailers.
    /// Err: it is malformed, which ends the stream.
    fn headers(
        &mut self,
        core: &mut Core,
        app: &mut Self::App,
        fields: Fields,
        end: bool,
    ) -> Result<(), &'static str>;

    /// Whether DATA may come yet. Err: why the message is malformed if it does (RFC 9113, 8.1).
    fn expects_data(app: &Self::App) -> Result<(), &'static str>;

    /// DATA came, in `read` if that may be held until [`keep`](Role::keep). Out: how much of it is kept; the
    /// rest is done with.
    fn data(
        &mut self,
        core: &mut Core,
        app: &mut Self::App,
        payload: &[u8],
        read: Option<&Bytes>,
    ) -> Kept;

    /// What was kept in place is copied now.
    fn keep(app: &mut Self::App);

    /// The peer ended its half without trailers.
    fn end(&mut self, core: &mut Core, app: &mut Self::App);

    /// The stream is over for a reason that is not its own end.
    fn broken(&mut self, app: &mut Self::App, error: BodyError);

    /// Whether handlers run on tasks of their own.
    fn is_on_tasks(&self) -> bool {
        false
    }

    /// So many handlers on tasks of their own may begin besides those that are alive.
    fn free_handlers(&self) -> usize {
        0
    }

    /// No stream waits to begin any more.
    fn all_have_begun(&self) {}

    /// So many bodies on tasks of their own may be asked besides those that are.
    fn free_places(&self) -> usize {
        0
    }

    /// Whether no user code has seen the stream yet, so that dropping it runs none.
    fn is_untouched(app: &Self::App) -> bool;

    /// Bytes in the app's inbox.
    fn buffered(app: &Self::App) -> usize;

    /// The same, counted where they lie: bytes that nobody took, and those that were taken and of which the
    /// connection does not know yet.
    #[cfg(test)]
    fn unread_bytes(app: &Self::App) -> usize;

    /// Lets the stream go on. Out: what it waits for.
    fn poll(&mut self, core: &mut Core, app: &mut Self::App, wire: &mut Wire) -> Turn;

    /// The stream's time is over, for this reason; our half is still open.
    fn expire(&mut self, core: &mut Core, app: &mut Self::App, wire: &mut Wire, why: Expiry);

    /// Refuses a request whose head was too large; no stream was made of it.
    fn too_large(&mut self, core: &mut Core, fields: &Fields, wire: &mut Wire);

    /// Whether nothing will be opened any more (clients whose handles are gone).
    fn is_finished(&self) -> bool;

    /// Nothing can be opened any more, for this reason.
    fn refuse_openings(&mut self, error: BodyError);
}

/// A stream that we open.
pub(crate) struct Opening<App> {
    pub(crate) request: Request<()>,
    pub(crate) app: App,
}

/// Why a stream's time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// `grpc-timeout`.
    Deadline,
    /// The peer did not open its window.
    Stalled,
    /// Nothing came or went.
    Idle,
    /// What came was not read, and used the connection's window up.
    Unread,
    /// The server is shutting down.
    Drained,
}

impl Expiry {
    /// The word in metrics.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Expiry::Deadline => "deadline",
            Expiry::Stalled => "stalled",
            Expiry::Idle => "idle",
            Expiry::Unread => "unread",
            Expiry::Drained => "drained",
        }
    }
}

/// What a stream waits for after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A frame, a wake, a window.
    Wait,
    /// It could go on, but had its share.
    Again,
    /// It seems to have nothing more, but has not said so: it is asked after [`LATER`](super::LATER).
    Later,
    /// Nothing: both halves are done.
    Over,
}
