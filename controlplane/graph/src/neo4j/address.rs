//! Where a Neo4j is, and how it is connected to: `bolt://HOST[:PORT]` in the clear, `bolt+s://` over TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::bolt::Stream;

/// Where Bolt is when the address does not say it.
const PORT_DEFAULT: u16 = 7687;

/// A host, and how to speak to it.
pub(super) struct Address {
    /// `HOST:PORT`.
    pub(super) host: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Whether a URL is `bolt://HOST[:PORT]` or `bolt+s://HOST[:PORT]`.
///
/// # Errors
/// Says what to write. The URL is not repeated: there may be a password in it.
pub fn check_url(url: &str) -> Result<(), String> {
    parse(url).map(drop)
}

/// Whether it is over TLS, the host's name, and `HOST:PORT`.
fn parse(url: &str) -> Result<(bool, String, String), String> {
    let wrong =
        || "write bolt://HOST:PORT, or bolt+s://HOST:PORT for TLS, without a user".to_owned();
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let over_tls = match scheme {
        "bolt" => false,
        "bolt+s" => true,
        _ => return Err(wrong()),
    };
    let rest = rest.trim_end_matches('/');
    let is_host = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._[]:".contains(c))
    };
    // The colons of an address of IPv6 stand in brackets.
    let (name, port) = match rest.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => {
            (name, port.parse::<u16>().map_err(|_| wrong())?)
        }
        _ => (rest, PORT_DEFAULT),
    };
    if !is_host(name) || name.matches(':').count() > 0 && !name.starts_with('[') {
        return Err(wrong());
    }
    let plain = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((over_tls, plain, format!("{name}:{port}")))
}

impl Address {
    /// Reads a URL. `ca` is a file with the authorities that are trusted, instead of the system's.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(super) fn new(url: &str, ca: Option<&Path>) -> Result<Self, String> {
        let (over_tls, name, host) = parse(url)?;
        let tls = match over_tls {
            false => None,
            true => {
                let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
                Some((TlsConnector::from(Arc::new(config(ca)?)), name))
            }
        };
        Ok(Self { host, tls })
    }

    /// Connects.
    pub(super) async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(&*self.host).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some((connector, name)) => Box::new(connector.connect(name.clone(), stream).await?),
        })
    }
}

fn config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => {
            // Those that cannot be read are not trusted.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(file) => {
            let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
            let all = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?;
            for one in all {
                let one = one.map_err(|error| wrong(&error))?;
                roots.add(one).map_err(|error| wrong(&error))?;
            }
        }
    }
    if roots.is_empty() {
        return Err("there is no certificate of an authority to trust".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Graph as _, GraphError};
    use crate::{Neo4j, neo4j::Options};
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsAcceptor;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (url, wanted) in [
            ("bolt://graph.example:7000", Some("graph.example:7000")),
            ("bolt+s://graph.example/", Some("graph.example:7687")),
            ("bolt://[::1]", Some("[::1]:7687")),
            ("bolt://[::1]:7000", Some("[::1]:7000")),
            ("neo4j://graph.example", None),
            ("graph.example:7687", None),
            ("bolt://", None),
            ("bolt://user:password@graph.example", None),
            ("bolt://graph.example:port", None),
            ("bolt://a:b:7000", None),
        ] {
            assert_eq!(parse(url).ok().map(|all| all.2).as_deref(), wanted, "{url}");
        }
    }

    /// A server with TLS that answers the greeting by a version that nobody asked for.
    async fn server(key: &rcgen::CertifiedKey<rcgen::KeyPair>) -> u16 {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let secret = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], secret)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut greeting = [0; 20];
                stream.read_exact(&mut greeting).await.unwrap();
                assert_eq!(greeting[..4], [0x60, 0x60, 0xB0, 0x17]);
                stream.write_all(&[0, 0, 9, 9]).await.unwrap();
                stream.flush().await.unwrap();
                // The client ends it.
                let _ = stream.read(&mut greeting).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn over_tls_only_a_trusted_server_is_spoken_to() {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let port = server(&key).await;
        for (trusted, wanted) in
            [(&key, "does not speak Bolt 5.1 to 5.4"), (&other, "invalid peer certificate")]
        {
            let ca = folder.path().join("ca.pem");
            std::fs::write(&ca, trusted.cert.pem()).unwrap();
            let options = Options {
                url: format!("bolt+s://localhost:{port}"),
                ca: Some(ca),
                login: None,
                database: None,
                time_max: std::time::Duration::from_secs(60),
            };
            let error = Neo4j::new(options).unwrap().stats().await.unwrap_err();
            assert!(matches!(error, GraphError::Unavailable(_)), "{error}");
            assert!(error.to_string().contains(wanted), "{error}");
        }
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let error = Address::new("bolt+s://localhost", Some(&empty)).err().unwrap();
        assert!(error.contains("no certificate of an authority"), "{error}");
    }
}
