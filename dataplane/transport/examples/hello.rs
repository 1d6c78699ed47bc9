//! Serves `/4k` and `/64m` from memory over HTTP and HTTPS on one shard, for measuring.
//!
//! `hello HTTP_ADDRESS HTTPS_ADDRESS TLS_DIR [CPU]`, then for example
//! `curl --cacert TLS_DIR/ca.pem https://localhost:8443/64m -o /dev/null`.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use outrider_shard::{ShardConfig, start, task};
use outrider_transport::{
    BodyFault, Drain, Handler, Limits, Listener, Peer, PinBudget, RequestBody, TransportMetrics,
    serve, tls,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FRAME_BYTES: usize = 256 * 1024;

/// What a cache would give: views of 256 KiB.
struct Views(Bytes);

impl Body for Views {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if self.0.is_empty() {
            return Poll::Ready(None);
        }
        let count = self.0.len().min(FRAME_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.0.split_to(count)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

struct Hello {
    bytes: Bytes,
}

impl Handler for Hello {
    type Body = Views;

    fn handle(
        self: Rc<Self>,
        request: http::Request<RequestBody>,
        _peer: Peer,
    ) -> impl Future<Output = http::Response<Views>> + 'static {
        let (status, body) = match request.uri().path() {
            "/4k" => (200, self.bytes.slice(..4096)),
            "/64m" => (200, self.bytes.clone()),
            _ => (404, Bytes::from_static(b"not here\n")),
        };
        let mut response = http::Response::new(Views(body));
        *response.status_mut() =
            http::StatusCode::from_u16(status).expect("these are status codes");
        std::future::ready(response)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [http, https, dir, rest @ ..] = arguments.as_slice() else {
        return Err("usage: hello HTTP_ADDRESS HTTPS_ADDRESS TLS_DIR [CPU]".into());
    };
    let cpu = rest.first().map(|cpu| cpu.parse()).transpose()?;
    let spin = std::env::var("SPIN_US").ok().map(|spin| spin.parse()).transpose()?;
    let plain = Listener::bind(http.parse()?)?;
    let secure = Listener::bind(https.parse()?)?;
    let files = tls::load_or_create(Path::new(dir), &[])?;
    let config = tls::server_config(Path::new(dir))?;
    eprintln!("trust {}", files.ca_pem.display());
    let mut shard = ShardConfig { cpu, ..ShardConfig::new(0) };
    if let Some(spin) = spin {
        shard.spin = Duration::from_micros(spin);
    }
    let shard = start(shard, move |_| async move {
        let pins = PinBudget::new(512 << 20, PinBudget::CONNECTION_BYTES_MAX);
        let hello = Rc::new(Hello { bytes: Bytes::from(vec![7; 64 << 20]) });
        let metrics = TransportMetrics::default();
        let drain = Drain::new();
        task::spawn(serve(
            plain,
            None,
            hello.clone(),
            Limits::default(),
            pins.clone(),
            drain.clone(),
            metrics.clone(),
        ));
        serve(secure, Some(config), hello, Limits::default(), pins, drain, metrics).await;
    })?;
    shard.join()?;
    Ok(())
}
