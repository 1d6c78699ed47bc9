//! A server of the native protocol for tests: blobs in memory, whole, by range, or in two frames.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use bytes::Bytes;
use outrider_artifact::Digest;
use outrider_artifact::native::{ALPN, Answer, Item, Reader, Refusal, RefusalCode, Tier, WantKind};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What the `n`th answer is.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Reply {
    /// Right, in one frame.
    Whole,
    /// Right, in two frames, the second announced by the first.
    InTwo,
    /// Half of the bytes, and the stream is reset.
    Cut,
    /// A refusal.
    Busy,
}

pub(crate) struct NativeServer {
    pub(crate) address: SocketAddr,
    pub(crate) certificate_pem: String,
    pub(crate) requests: Arc<AtomicU32>,
}

/// Serves `contents` (manifests are those that begin with `{`) until the test process ends.
pub(crate) fn start(contents: &[Bytes], reply: fn(u32) -> Reply) -> NativeServer {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let contents: HashMap<Digest, Bytes> =
        contents.iter().map(|bytes| (Digest::sha256(bytes), bytes.clone())).collect();
    let contents = Arc::new(contents);
    let requests = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&requests);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut tls = rustls::ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
                .unwrap();
            tls.alpn_protocols = vec![ALPN.to_vec()];
            tls.max_early_data_size = u32::MAX;
            let crypto = QuicServerConfig::try_from(tls).unwrap();
            let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
            let any = "127.0.0.1:0".parse().unwrap();
            let endpoint = quinn::Endpoint::server(config, any).unwrap();
            tell.send(endpoint.local_addr().unwrap()).unwrap();
            while let Some(incoming) = endpoint.accept().await {
                let (contents, counter) = (Arc::clone(&contents), Arc::clone(&counter));
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    while let Ok((send, receive)) = connection.accept_bi().await {
                        let reply = reply(counter.fetch_add(1, Ordering::Relaxed));
                        tokio::spawn(answer(Arc::clone(&contents), send, receive, reply));
                    }
                });
            }
        });
    });
    NativeServer { address: told.recv().unwrap(), certificate_pem: made.cert.pem(), requests }
}

async fn answer(
    contents: Arc<HashMap<Digest, Bytes>>,
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
    reply: Reply,
) {
    let bytes = receive.read_to_end(1 << 20).await.unwrap();
    let mut reader = Reader::server();
    let (taken, Some(Item::Request(request))) = reader.read(&bytes).unwrap() else { panic!() };
    assert_eq!(taken, bytes.len());
    if reply == Reply::Busy {
        let refusal = Refusal { code: RefusalCode::BUSY, text: "busy".to_owned() };
        send.write_all(&refusal.encode()).await.unwrap();
        let _ = send.finish();
        return;
    }
    for (index, want) in (0_u32..).zip(&request.wants) {
        let found = contents
            .get(&want.digest)
            .filter(|bytes| (bytes.first() == Some(&b'{')) == (want.kind == WantKind::Manifest));
        let Some(content) = found else {
            let answer = Answer::error(index, want.digest, 404, "not here");
            send.write_all(&answer.encode().unwrap()).await.unwrap();
            continue;
        };
        let total = content.len() as u64;
        if want.offset >= total && total > 0 {
            let mut answer = Answer::error(index, want.digest, 416, "behind the end");
            answer.total = total;
            send.write_all(&answer.encode().unwrap()).await.unwrap();
            continue;
        }
        let end = want.len.map_or(total, |len| total.min(want.offset.saturating_add(len)));
        let part = content.slice(want.offset as usize..end as usize);
        let pieces = match reply {
            Reply::InTwo => vec![part.slice(..part.len() / 2), part.slice(part.len() / 2..)],
            _ => vec![part.clone()],
        };
        let mut start = want.offset;
        for (n, piece) in pieces.iter().enumerate() {
            let head = Answer {
                want: index,
                status: if part.len() as u64 == total { 200 } else { 206 },
                digest: want.digest,
                total,
                start,
                len: piece.len() as u64,
                body_len: piece.len() as u64,
                more: n + 1 < pieces.len(),
                verified: true,
                tier: Tier::Ram,
                media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
                error: String::new(),
            };
            start += piece.len() as u64;
            send.write_all(&head.encode().unwrap()).await.unwrap();
            if reply == Reply::Cut {
                send.write_all(&piece[..piece.len() / 2]).await.unwrap();
                // So that the client has what was sent before.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                let _ = send.reset(17_u32.into());
                return;
            }
            if send.write_all(piece).await.is_err() {
                return;
            }
        }
    }
    let _ = send.finish();
}
