//! A second certificate: that of a member of a cluster, for other members, who ask for it by its name (SNI).

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificate of a member.
#[derive(Debug)]
pub struct MemberCertificate {
    /// The name by which members ask for it.
    pub name: String,
    /// The certificate, which may be another one each time.
    pub shown: Arc<dyn ResolvesServerCert>,
}

/// The configuration with this certificate for who asks by its name; everybody else gets what they got before.
#[must_use]
pub fn with_member(config: &ServerConfig, member: MemberCertificate) -> Arc<ServerConfig> {
    let MemberCertificate { name, shown } = member;
    let mut config = config.clone();
    let others = Arc::clone(&config.cert_resolver);
    config.cert_resolver = Arc::new(ByName { name, shown, others });
    Arc::new(config)
}

#[derive(Debug)]
struct ByName {
    name: String,
    shown: Arc<dyn ResolvesServerCert>,
    others: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) if name.eq_ignore_ascii_case(&self.name) => self.shown.resolve(hello),
            _ => self.others.resolve(hello),
        }
    }
}
