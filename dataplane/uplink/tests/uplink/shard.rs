//! The reader's side: a shard, an uplink, and what is asked most often.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;
use std::time::Duration;

use outrider_artifact::{Digest, Reference};
use outrider_shard::ShardConfig;
use outrider_uplink::address::{AddressClass, classify};
use outrider_uplink::{
    Fetch, FetchError, FetchMethod, FetchRange, FetchRequest, Target, Uplink, UplinkClient,
    UplinkOptions, UpstreamConfig, UpstreamId, UpstreamStatus, Whom,
};

/// The addresses of this little world; see the top of `main.rs`.
pub(crate) fn world(address: IpAddr) -> AddressClass {
    match address {
        IpAddr::V4(address) if address == Ipv4Addr::new(127, 0, 0, 2) => AddressClass::Public,
        IpAddr::V4(address) if address == Ipv4Addr::new(127, 0, 0, 3) => AddressClass::Public,
        IpAddr::V4(address) if address == Ipv4Addr::new(127, 0, 0, 4) => AddressClass::Private,
        IpAddr::V4(address) if address == Ipv4Addr::new(127, 0, 0, 5) => AddressClass::Private,
        other => classify(other),
    }
}

pub(crate) fn options() -> UplinkOptions {
    UplinkOptions { classifier: world, ..UplinkOptions::default() }
}

pub(crate) fn upstream(url: &str) -> UpstreamConfig {
    UpstreamConfig::new(None, url).unwrap()
}

pub(crate) fn start(upstream: UpstreamConfig) -> Uplink {
    outrider_uplink::start(vec![upstream], options()).unwrap()
}

/// Runs `work` on a shard of its own.
pub(crate) fn on_shard<T, W, F>(uplink: &Uplink, work: W) -> T
where
    T: Send + 'static,
    W: FnOnce(UplinkClient) -> F + Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (result, results) = mpsc::channel();
    // A client belongs to its shard, whose handle is there when the shard is.
    let (give, take) = mpsc::channel::<UplinkClient>();
    let shard = outrider_shard::start(ShardConfig::new(0), move |_| async move {
        let client = take.recv().unwrap();
        result.send(work(client).await).unwrap();
    })
    .unwrap();
    give.send(uplink.client(&shard.handle())).unwrap();
    let value = results.recv();
    shard.join().unwrap();
    value.unwrap()
}

pub(crate) fn blob(content: &[u8]) -> FetchRequest {
    request(Target::Blob(Digest::sha256(content)))
}

pub(crate) fn manifest(tag: &str) -> FetchRequest {
    request(Target::Manifest(tag.parse::<Reference>().unwrap()))
}

pub(crate) fn head(tag: &str) -> FetchRequest {
    FetchRequest { method: FetchMethod::Head, ..manifest(tag) }
}

fn request(target: Target) -> FetchRequest {
    FetchRequest {
        from: Whom::Upstream(UpstreamId(0)),
        repository: "library/alpine".to_owned(),
        target,
        method: FetchMethod::Get,
        range: None,
        accept: Vec::new(),
    }
}

pub(crate) fn part(content: &[u8], first: u64, last: Option<u64>) -> FetchRequest {
    FetchRequest { range: Some(FetchRange { first, last }), ..blob(content) }
}

/// All of a body, and how it ended.
pub(crate) async fn drain(mut fetch: Fetch) -> (Vec<u8>, Option<FetchError>) {
    let mut bytes = Vec::new();
    loop {
        match fetch.body.next().await {
            Some(Ok(data)) => bytes.extend_from_slice(&data),
            Some(Err(error)) => {
                assert!(fetch.body.next().await.is_none(), "there is something after the error");
                return (bytes, Some(error));
            }
            None => return (bytes, None),
        }
    }
}

/// The content of a fetch that must succeed.
pub(crate) async fn content(client: &UplinkClient, request: FetchRequest) -> Vec<u8> {
    let (bytes, error) = drain(client.fetch(request).await.unwrap()).await;
    assert_eq!(error, None);
    bytes
}

/// Fetches one thing, on a shard of its own, to its end.
pub(crate) fn get(uplink: &Uplink, request: FetchRequest) -> Result<Vec<u8>, FetchError> {
    on_shard(uplink, |client| async move {
        let (bytes, error) = drain(client.fetch(request).await?).await;
        error.map_or(Ok(bytes), Err)
    })
}

/// Fetches one thing that must fail.
pub(crate) fn error(uplink: &Uplink, request: FetchRequest) -> FetchError {
    match get(uplink, request) {
        Ok(bytes) => panic!("it succeeded with {} bytes", bytes.len()),
        Err(error) => error,
    }
}

/// Waits until the only upstream's status is like that.
pub(crate) fn wait_for(uplink: &Uplink, what: impl Fn(&UpstreamStatus) -> bool) {
    while !what(&uplink.status()[0]) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until nothing is under way any more.
pub(crate) fn wait_until_idle(uplink: &Uplink) {
    wait_for(uplink, |status| status.manifests.in_flight + status.blobs.in_flight == 0);
}

/// Polls a future once, which sends a fetch on its way; it must not be ready.
pub(crate) async fn begin<F: Future>(future: &mut std::pin::Pin<Box<F>>) {
    let ready =
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready()))
            .await;
    assert!(!ready, "it is over already");
}
