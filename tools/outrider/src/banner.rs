//! What `outrider up` says once it serves: long at the first start, short later. Pure.

use std::fmt::Write;
use std::net::SocketAddr;

use outrider_edge::Ready;
use outrider_edge::units::Size;

/// The text for the user.
pub(crate) fn text(ready: &Ready) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = if ready.first_start { first(&mut out, ready) } else { later(&mut out, ready) };
    out
}

fn first(out: &mut String, ready: &Ready) -> std::fmt::Result {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(out, "Outrider {version} is up; its data is in {}\n", ready.data_dir.display())?;
    if let Some(https) = ready.https {
        writeln!(out, "  HTTPS  https://{https}")?;
        writeln!(out, "         CA to trust: {}", ready.ca_pem.display())?;
    }
    if let Some(http) = ready.http {
        writeln!(out, "  HTTP   http://{http} (this machine only)")?;
    }
    if let Some(admin) = ready.admin {
        writeln!(out, "  admin  http://{admin}/status, /metrics, /healthz, /readyz")?;
    }
    writeln!(out, "  cache  {}", cache(ready))?;
    for (name, url) in &ready.upstreams {
        match name {
            Some(name) => writeln!(out, "  mirror {url} as {name}/...")?,
            None => writeln!(out, "  mirror {url} at the root")?,
        }
    }
    writeln!(out, "\nTry:")?;
    for command in commands(ready) {
        writeln!(out, "  {command}")?;
    }
    writeln!(out, "\nCtrl-C stops it.")
}

fn later(out: &mut String, ready: &Ready) -> std::fmt::Result {
    let addresses: Vec<String> =
        [("https", ready.https), ("http", ready.http), ("admin http", ready.admin)]
            .into_iter()
            .filter_map(|(scheme, address)| Some(format!("{scheme}://{}", address?)))
            .collect();
    let version = env!("CARGO_PKG_VERSION");
    writeln!(out, "Outrider {version} is up: {}", addresses.join(", "))?;
    writeln!(out, "data and CA: {}, {}", ready.data_dir.display(), ready.ca_pem.display())
}

fn cache(ready: &Ready) -> String {
    match ready.ssd {
        Size(0) => format!("{} of memory, no disk: pushes are refused", ready.ram),
        ssd => format!("{} of memory, {ssd} of disk", ready.ram),
    }
}

/// Three commands that work as they stand, as far as the names of an upstream's images allow.
fn commands(ready: &Ready) -> Vec<String> {
    // Docker takes an address of 127.0.0.0/8 for insecure by itself; skopeo has to be told.
    let (registry, verify) = match (ready.http, ready.https) {
        (Some(http), _) => (reachable(http), "=false"),
        (None, Some(https)) => (reachable(https), "=false"),
        (None, None) => return Vec::new(),
    };
    let check = match (ready.https, ready.http) {
        (Some(https), _) => {
            let ca = quoted(&ready.ca_pem.display().to_string());
            format!("curl --cacert {ca} https://{}/v2/_catalog", reachable(https))
        }
        (None, Some(http)) => format!("curl http://{}/v2/_catalog", reachable(http)),
        (None, None) => return Vec::new(),
    };
    match ready.upstreams.first() {
        None => vec![
            check,
            format!(
                "skopeo copy --dest-tls-verify{verify} docker://docker.io/library/alpine:latest \
                 docker://{registry}/demo/alpine:latest"
            ),
            format!("docker pull {registry}/demo/alpine:latest"),
        ],
        Some((name, url)) => {
            let hub = url.contains("registry-1.docker.io");
            let image = if hub { "library/alpine:latest" } else { "REPOSITORY:TAG" };
            let image = match name {
                // A name with a port cannot stand in a repository's name.
                Some(name) if !name.contains(':') => format!("{name}/{image}"),
                _ => image.to_owned(),
            };
            vec![
                check,
                format!("skopeo inspect --tls-verify{verify} docker://{registry}/{image}"),
                format!("docker pull {registry}/{image}"),
            ]
        }
    }
}

/// The address as a client on this machine can use it.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("127.0.0.1:{}", address.port())
    } else {
        address.to_string()
    }
}

/// The text as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Ready {
        Ready {
            first_start: true,
            data_dir: "/home/u/out rider".into(),
            https: Some("0.0.0.0:8443".parse().unwrap()),
            http: Some("127.0.0.1:8080".parse().unwrap()),
            admin: Some("127.0.0.1:9180".parse().unwrap()),
            ca_pem: "/home/u/out rider/tls/ca.pem".into(),
            ram: Size::gib(1),
            ssd: Size::gib(20),
            upstreams: Vec::new(),
        }
    }

    #[test]
    fn the_first_start_says_where_it_listens_whom_to_trust_and_what_to_try() {
        let text = text(&ready());
        for part in [
            "https://0.0.0.0:8443",
            "CA to trust: /home/u/out rider/tls/ca.pem",
            "http://127.0.0.1:8080 (this machine only)",
            "http://127.0.0.1:9180/status",
            "1GiB of memory, 20GiB of disk",
            "  curl --cacert '/home/u/out rider/tls/ca.pem' https://127.0.0.1:8443/v2/",
            "docker://127.0.0.1:8080/demo/alpine",
        ] {
            assert!(text.contains(part), "without {part:?}:\n{text}");
        }
        let tried = text.split("Try:\n").nth(1).unwrap().lines().take_while(|l| !l.is_empty());
        assert_eq!(tried.count(), 3);
    }

    #[test]
    fn later_starts_say_less() {
        let text = text(&Ready { first_start: false, ..ready() });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("https://0.0.0.0:8443") && text.contains("ca.pem"), "{text}");
    }

    #[test]
    fn what_to_try_is_at_the_first_upstream() {
        let with = |name: Option<&str>, url: &str| {
            text(&Ready { upstreams: vec![(name.map(str::to_owned), url.to_owned())], ..ready() })
        };
        assert!(
            with(None, "https://registry-1.docker.io/")
                .contains("docker pull 127.0.0.1:8080/library/alpine:latest")
        );
        let named = with(Some("hub"), "http://127.0.0.1:5000/");
        assert!(named.contains("docker pull 127.0.0.1:8080/hub/REPOSITORY:TAG"), "{named}");
        assert!(named.contains("mirror http://127.0.0.1:5000/ as hub/..."), "{named}");
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(quoted("/a/b.pem"), "/a/b.pem");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }
}
