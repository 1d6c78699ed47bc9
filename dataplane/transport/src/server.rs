//! Accepting connections and serving them.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::{
    BodyFault, Drain, Limits, Listener, Peer, PinBudget, RequestBody, TransportMetrics,
};

/// Answers requests.
pub trait Handler: 'static {
    /// The body of the answers. An error cuts the response off: over HTTP/1 the connection is
    /// closed, over HTTP/2 the stream is reset.
    type Body: http_body::Body<Data = Bytes, Error = BodyFault> + 'static;

    /// Answers one request.
    fn handle(
        self: Rc<Self>,
        request: http::Request<RequestBody>,
        peer: Peer,
    ) -> impl Future<Output = http::Response<Self::Body>> + 'static;
}

/// Serves `listener` on this shard until `drain` is started.
pub async fn serve<H: Handler>(
    listener: Listener,
    tls: Option<Arc<rustls::ServerConfig>>,
    handler: Rc<H>,
    limits: Limits,
    pins: PinBudget,
    drain: Drain,
    metrics: TransportMetrics,
) {
    let _ = (listener, tls, handler, limits, pins, drain, metrics);
    unimplemented!()
}
