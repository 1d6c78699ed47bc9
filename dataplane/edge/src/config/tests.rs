//! What a configuration may say, and how a wrong one is refused.

use super::*;

fn refused(text: &str) -> String {
    Config::parse(text, "edge.toml").expect_err(text).to_string()
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = Config::parse("", "edge.toml").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.listen.https, Listen::At("127.0.0.1:8443".parse().unwrap()));
    assert_eq!(config.tags.ttl, Span::s(60));
    assert_eq!(config.tags.stale.to_string(), "7d");
    assert_eq!(config.drain.time, Span::s(20));
}

#[test]
fn each_wrong_file_is_refused_with_its_line_and_what_to_do() {
    for (text, wanted) in [
        // Unknown keys, by name and line.
        ("[cache]\nrma = \"1GiB\"\n", vec!["edge.toml:2:1: unknown key `rma`", "`ram`"]),
        ("\n\ntag = 1\n", vec!["edge.toml:3:1: unknown key `tag`"]),
        (
            "[[upstream]]\nurl = \"https://r.example\"\npassword = \"x\"\n",
            vec!["edge.toml:3:1: unknown key `password`", "`password_file`"],
        ),
        ("[control]\nnode = \"c1:9191\"\n", vec!["edge.toml:2:1: unknown key `node`", "`nodes`"]),
        // Not TOML, and values of the wrong kind.
        ("[cache\n", vec!["edge.toml:1:"]),
        ("[tags]\nttl = 60\n", vec!["edge.toml:2:7:", "a duration with its unit"]),
        ("[tags]\nttl = \"60\"\n", vec!["edge.toml:2:7:", "\"60\" is not a duration", "\"60s\""]),
        ("[cache]\nram = \"1G\"\n", vec!["edge.toml:2:7:", "\"1G\" is not a size", "20GiB"]),
        ("[listen]\nhttps = \"8443\"\n", vec!["edge.toml:2:9:", "write IP:PORT", "off"]),
        ("[log]\nformat = \"xml\"\n", vec!["edge.toml:2:10:", "`text`", "`json`"]),
        ("[[upstream]]\nname = \"hub\"\n", vec!["edge.toml:1:1:", "missing field `url`"]),
        // Values outside their bounds: key, value, why, what to do.
        (
            "[listen]\nadmin = \"off\"\nhttp = \"0.0.0.0:8080\"\n",
            vec![
                "edge.toml:3: listen.http = \"0.0.0.0:8080\"",
                "not a loopback address",
                "listen.https = \"0.0.0.0:8080\"",
            ],
        ),
        (
            "[listen]\nhttps = \"off\"\nhttp = \"off\"\n",
            vec!["edge.toml:2: listen.https", "nobody could be served"],
        ),
        (
            "[listen]\nhttps = \"0.0.0.0:9180\"\n",
            vec!["listen.admin = \"127.0.0.1:9180\"", "listen.https has that address already"],
        ),
        (
            "[shards]\ncount = 65\n",
            vec!["edge.toml:2: shards.count = \"65\"", "1 to 64", "leave it out"],
        ),
        (
            "[control]\nnodes = [\"c1:0\"]\n",
            vec!["edge.toml:2: control.nodes = \"c1:0\"", "not a host and a port", "HOST:PORT"],
        ),
        ("[shards]\ncount = 0\n", vec!["shards.count = \"0\"", "1 to 64"]),
        ("[shards]\nspin = \"1ms\"\n", vec!["shards.spin = \"1ms\"", "0s to 50us"]),
        ("[cache]\nram = \"1MiB\"\n", vec!["edge.toml:2: cache.ram = \"1MiB\"", "64MiB or more"]),
        ("[cache]\nssd = \"1MiB\"\n", vec!["cache.ssd = \"1MiB\"", "\"0B\" to use no disk"]),
        ("[cache]\nstripes = 0\n", vec!["cache.stripes = \"0\"", "1 to 64"]),
        ("[cache]\nupload_share = 1.5\n", vec!["cache.upload_share = \"1.5\"", "0.0 to 0.95"]),
        ("[cache]\nupload_share = nan\n", vec!["cache.upload_share = \"NaN\""]),
        ("[site]\nregion = \"EU\"\n", vec!["edge.toml:2: site.region = \"EU\"", "lower case"]),
        ("[drain]\ntime = \"2h\"\n", vec!["drain.time = \"2h\"", "0s to 1h"]),
        ("[log]\nlevel = \"a=b=c\"\n", vec!["log.level", "write error, warn, info"]),
        ("[tls]\nnames = [\"https://x\"]\n", vec!["edge.toml:2: tls.names", "without scheme"]),
        (
            "[[upstream]]\nurl = \"https://a.example\"\n[[upstream]]\nurl = \"https://b.example\"\n",
            vec!["edge.toml:3: upstream[1].name", "only one can be mirrored at the root"],
        ),
        (
            "[[upstream]]\nname = \"x\"\nurl = \"https://a.example\"\n\
             [[upstream]]\nname = \"x\"\nurl = \"https://b.example\"\n",
            vec!["edge.toml:5: upstream[1].name = \"x\"", "another upstream has that name"],
        ),
        (
            "[[upstream]]\nurl = \"https://user:secret@a.example\"\n",
            vec!["edge.toml:2: upstream[0].url", "password_file"],
        ),
        ("[[upstream]]\nurl = \"ftp://a.example\"\n", vec!["the scheme must be https or http"]),
        (
            "[[upstream]]\nurl = \"https://a.example\"\nwindow_bytes = \"1KiB\"\n",
            vec!["edge.toml:3: upstream[0].window_bytes = \"1KiB\"", "64KiB to 16MiB"],
        ),
        (
            "[[upstream]]\nurl = \"https://a.example\"\nbreaker.open_min = \"2m\"\n",
            vec!["edge.toml:3: upstream[0].breaker.open_max = \"1m\"", "2m to 1h"],
        ),
        ("[[upstream]]\nurl = \"https://docker.io\"\n", vec!["registry-1.docker.io"]),
        (
            "[[upstream]]\nurl = \"https://a.example\"\nusername = \"u\"\n",
            vec!["edge.toml:3: upstream[0].username", "password_file"],
        ),
    ] {
        let message = refused(text);
        for part in wanted {
            assert!(message.contains(part), "{text:?} gave {message:?}, without {part:?}");
        }
        assert!(!message.contains('\n'), "more than one line: {message}");
    }
}

#[test]
fn a_password_in_a_url_is_never_printed() {
    for url in ["https://user:secret@a.example", "user:secret@a.example", "https://user:secret@a b"]
    {
        let message = refused(&format!("[[upstream]]\nurl = \"{url}\"\n"));
        assert!(!message.contains("secret"), "{message}");
    }
    for text in
        ["x=https://user:secret@a.example", "user:secret@a.example", "https://user:secret@a b"]
    {
        let message = text.parse::<UpstreamArgument>().unwrap_err();
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn upstream_arguments_are_urls_with_or_without_a_name() {
    let bare: UpstreamArgument = "http://127.0.0.1:5000".parse().unwrap();
    assert_eq!((bare.name, bare.url.as_str()), (None, "http://127.0.0.1:5000/"));
    for name in ["docker.io", "hub", "registry.example.com", "localhost:5000", "a__b", "a--b"] {
        let named: UpstreamArgument = format!("{name}=https://r.example").parse().unwrap();
        assert_eq!(named.name.as_deref(), Some(name));
    }
}

#[test]
fn bad_upstream_arguments_say_what_to_write() {
    for (text, wanted) in [
        ("registry.example", "write https://registry.example"),
        ("hub=registry.example", "write hub=https://registry.example"),
        ("hub=", "write hub=https://registry.example.com"),
        ("=https://r.example", "the name \"\": it is empty"),
        ("Hub=https://r.example", "write it in lower case"),
        ("a/b=https://r.example", "one component"),
        ("a..b=https://r.example", "one component"),
        ("a:0=https://r.example", "a name is a host"),
        ("hub=ftp://r.example", "the scheme must be https or http"),
        ("hub=https://", "not a URL"),
        ("https://r.example/?a=b", "a query"),
        ("https://u@r.example", "does not belong into a URL"),
        ("docker.io=https://docker.io", "https://registry-1.docker.io"),
    ] {
        let message = text.parse::<UpstreamArgument>().expect_err(text);
        assert!(message.contains(wanted), "{text:?} gave {message:?}");
    }
}

#[test]
fn up_names_its_options_instead_of_keys() {
    let up = |change: fn(&mut UpOptions)| {
        let mut options = UpOptions { data: "/d".into(), ..UpOptions::default() };
        change(&mut options);
        Config::for_up(options)
    };
    assert_eq!(up(|_| ()).unwrap().data.dir, PathBuf::from("/d"));
    for (change, wanted) in [
        ((|o| o.shards = Some(0)) as fn(&mut UpOptions), "--shards = \"0\": it must be 1 to 64"),
        (|o| o.http = Some("192.0.2.1:80".parse().unwrap()), "(--https \"192.0.2.1:80\")"),
        (|o| o.ram = Some(Size(1)), "--ram = \"1B\""),
        (|o| o.data = PathBuf::new(), "--data = \"\": it is empty"),
        (
            |o| {
                o.upstreams =
                    ["https://a.example", "https://b.example"].map(|u| u.parse().unwrap()).into();
            },
            "--upstream = \"\": another upstream has no name",
        ),
    ] {
        let message = up(change).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message:?} without {wanted:?}");
    }
}

#[test]
fn a_file_that_is_no_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Config::load(&dir.path().join("none.toml")).unwrap_err().to_string();
    assert!(missing.contains("none.toml") && missing.contains("check the path"), "{missing}");
    let large = dir.path().join("large.toml");
    std::fs::write(&large, "#".repeat(1 + CONFIG_BYTES_MAX as usize)).unwrap();
    assert!(matches!(Config::load(&large), Err(ConfigError::TooLarge { .. })));
}

#[test]
fn what_passes_here_passes_at_the_uplink_too() {
    let text = "[[upstream]]\nurl = \"https://a.example/prefix\"\nusername = \"u\"\npassword_file = \"/p\"\n\
                waiters_max = 0\nwindow_bytes = \"16MiB\"\nbreaker = { open_max = \"1h\" }\n\
                [[upstream]]\nname = \"x\"\nurl = \"https://b.example\"\n";
    let config = Config::parse(text, "edge.toml").unwrap();
    for upstream in &config.upstream {
        upstream.to_uplink().check().unwrap();
    }
}
