//! HTTP/3 clients that nobody here has written: small programs in `tests/peers` around quic-go, aioquic,
//! libcurl with ngtcp2 (curl_cffi), qh3 (niquests) and Chromium.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::layout::Pulled;
use crate::process::run;
use crate::scratch::Scratch;
use crate::tools;

/// One answer.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// What the client says that it came over: `HTTP/3`, `HTTP/2`, `HTTP/1.1`.
    pub protocol: String,
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Which program asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http3Client {
    /// quic-go, one request after another.
    QuicGo,
    /// Headless Chromium.
    Chromium,
    /// One of `tests/peers/python/fetch.py`.
    Python(&'static str),
}

impl Http3Client {
    fn command(self, home: &Path) -> Command {
        match self {
            Self::QuicGo => tools::command("h3get", home),
            Self::Chromium => {
                let mut command = tools::python("chromium.py", home);
                command.arg(home.join("profile"));
                command
            }
            Self::Python(name) => {
                let mut command = tools::python("fetch.py", home);
                command.arg(name);
                command
            }
        }
    }

    /// Asks for each of `wanted`, `URL` or `URL@RANGE`, all on one connection if the client can.
    pub fn fetch(self, ca_pem: &Path, wanted: &[String]) -> Vec<Fetched> {
        self.fetch_gated(ca_pem, wanted, || ())
    }

    /// Like [`Http3Client::fetch`]; a client that sends early data reads no answer before `ready` has come
    /// to its end.
    pub fn fetch_gated(
        self,
        ca_pem: &Path,
        wanted: &[String],
        ready: impl FnOnce() + Send,
    ) -> Vec<Fetched> {
        let scratch = Scratch::new();
        let answers = scratch.dir("answers");
        let mut command = self.command(scratch.path());
        command.arg(ca_pem).arg(&answers).args(wanted);
        let gate = answers.join("gate");
        let said = std::thread::scope(|scope| {
            scope.spawn(move || {
                ready();
                fs::write(gate, "").expect("an empty file");
            });
            run(command).ok()
        });
        let fetched: Vec<Fetched> = said
            .lines()
            .enumerate()
            .map(|(n, line)| {
                let words: Vec<&str> = line.split(' ').collect();
                let [protocol, status, size] = words[..] else { panic!("{self:?} says {line:?}") };
                let body = fs::read(answers.join(n.to_string())).expect("the body is in a file");
                assert_eq!(size, body.len().to_string(), "{self:?}");
                let status = status.parse().expect("a status code");
                Fetched { protocol: protocol.to_owned(), status, body }
            })
            .collect();
        assert_eq!(fetched.len(), wanted.len(), "{self:?} says {said:?}");
        fetched
    }
}

/// Pulls `image` (host/repository:tag) with go-containerregistry over HTTP/3 and nothing else. The number
/// of requests is beside the image.
pub fn pull(ca_pem: &Path, image: &str) -> (Pulled, u64) {
    let (layout, scratch) = (Pulled::default(), Scratch::new());
    let mut command = tools::command("h3pull", scratch.path());
    command.arg(ca_pem).arg(image).arg(&*layout);
    let said = run(command).ok();
    let last = said.lines().last().expect("a line");
    let (digest, requests) = last.split_once(' ').expect("DIGEST REQUESTS");
    assert_eq!(digest, crate::layout::digest(&layout));
    (layout, requests.parse().expect("a number"))
}

/// Runs `cases` of aioquic's interop program: for each its letters, and what went wrong if anything has.
pub fn interop(ca_pem: &Path, host: &str, port: u16, cases: &[&str]) -> Vec<(String, String)> {
    let scratch = Scratch::new();
    let mut command = tools::python("interop.py", scratch.path());
    command.arg(tools::cache_dir().join("tools/python/aioquic-examples"));
    command.arg(ca_pem).arg(host).arg(port.to_string()).args(cases);
    let said = run(command).ok();
    let lines: Vec<(String, String)> = said
        .lines()
        .zip(cases)
        .map(|(line, case)| {
            let rest = line.strip_prefix(case).unwrap_or_else(|| panic!("{case}: {line:?}"));
            let (letters, wrong) = rest.trim_start().split_once(' ').unwrap_or((rest.trim(), ""));
            (letters.to_owned(), wrong.to_owned())
        })
        .collect();
    assert_eq!(lines.len(), cases.len(), "{said}");
    lines
}
