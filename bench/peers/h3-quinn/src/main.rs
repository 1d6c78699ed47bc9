//! `outrider-bench-h3-peer --listen ADDR --root DIR --cert FILE --key FILE [--mtu BYTES]`: serves the
//! files of a folder from memory over HTTP/3, and says `listening on ADDR` when it does.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use outrider_bench_h3_peer::{Blobs, PeerError, endpoint, serve};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A minimal HTTP/3 file server of h3 and h3-quinn.
#[derive(Debug, Parser)]
#[command(name = "outrider-bench-h3-peer", version)]
struct Arguments {
    /// Where to serve
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// The files to serve; they are read once
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// The certificate chain (PEM)
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The largest UDP payload to try
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1200..))]
    mtu: Option<u16>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outrider-bench-h3-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), PeerError> {
    let tls = |error: rustls::pki_types::pem::Error| PeerError::Tls(error.to_string());
    let certificates = CertificateDer::pem_file_iter(&arguments.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(tls)?;
    let key = PrivateKeyDer::from_pem_file(&arguments.key).map_err(tls)?;
    let blobs = Arc::new(Blobs::load(&arguments.root)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| PeerError::Io { doing: "making a runtime".to_owned(), source })?;
    runtime.block_on(async {
        let endpoint = endpoint(arguments.listen, certificates, key, arguments.mtu)?;
        let _ = writeln!(std::io::stdout(), "listening on {}", arguments.listen);
        serve(endpoint, blobs).await;
        Ok(())
    })
}
