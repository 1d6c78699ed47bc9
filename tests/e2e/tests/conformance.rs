//! Suites that others wrote: the OCI distribution specification's own, and h2spec for HTTP/2. What
//! fails is listed here by name with the reason; the list must say exactly what fails.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use outrider_e2e::process::run;
use outrider_e2e::*;

/// What fails in the suite of the OCI distribution specification (2023), and why that is right.
const OCI_EXPECTED_FAILURES: [(&str, &str); 0] = [];

/// What fails in h2spec, and why that is right or cannot be mended.
const H2SPEC_EXPECTED_FAILURES: [(&str, &str); 0] = [];

/// The names of all test cases of a JUnit report, and of those that failed.
fn read_junit(file: &Path) -> (usize, BTreeSet<String>) {
    let xml = std::fs::read_to_string(file).expect("the suite wrote its report");
    let mut cases = 0;
    let mut failed = BTreeSet::new();
    for case in xml.split("<testcase").skip(1) {
        let case = case.split("</testcase>").next().unwrap_or(case);
        let (tag, inside) = case.split_once('>').expect("a tag ends");
        let attribute = |key: &str| {
            let (_, rest) = tag.split_once(&format!(" {key}=\""))?;
            rest.split('"').next()
        };
        let package = attribute("package").unwrap_or_default();
        let name = attribute("name").or(attribute("classname")).unwrap_or("?");
        cases += 1;
        if !tag.ends_with('/') && (inside.contains("<failure") || inside.contains("<error")) {
            let text = format!("{package} {name}");
            failed.insert(unescape(text.trim()));
        }
    }
    (cases, failed)
}

fn unescape(text: &str) -> String {
    let pairs = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn assert_failures(failed: &BTreeSet<String>, expected: &[(&str, &str)]) {
    let expected: BTreeSet<String> = expected.iter().map(|(name, _)| (*name).to_owned()).collect();
    let new: Vec<_> = failed.difference(&expected).collect();
    let mended: Vec<_> = expected.difference(failed).collect();
    assert!(new.is_empty(), "fails, and is not expected to: {new:#?}");
    assert!(mended.is_empty(), "is expected to fail, and does not: {mended:#?}");
}

/// Runs the suite of the OCI distribution specification; gives how many cases there are, and which fail.
fn oci_suite(url: &str) -> (usize, BTreeSet<String>) {
    let scratch = Scratch::new();
    let mut suite = Command::new(tools::program("oci-conformance"));
    suite.current_dir(scratch.path()).arg("-ginkgo.noColor");
    suite.env("OCI_ROOT_URL", url);
    suite.env("OCI_NAMESPACE", "suite/one").env("OCI_CROSSMOUNT_NAMESPACE", "suite/two");
    suite.env("OCI_HIDE_SKIPPED_WORKFLOWS", "0");
    for workflow in ["PULL", "PUSH", "CONTENT_DISCOVERY", "CONTENT_MANAGEMENT"] {
        suite.env(format!("OCI_TEST_{workflow}"), "1");
    }
    let output = run(suite);
    let report = scratch.path().join("junit.xml");
    assert!(report.is_file(), "{}{}", output.out, output.err);
    let (cases, failed) = read_junit(&report);
    eprintln!("{url}: {cases} cases, {} failed", failed.len());
    assert!(cases >= 60, "all of the suite ran: {cases}");
    (cases, failed)
}

#[test]
fn the_oci_suite_of_2023_passes() {
    let outrider = Outrider::start(Options::default());
    let (_, failed) = oci_suite(&outrider.url());
    assert_failures(&failed, &OCI_EXPECTED_FAILURES);
}

#[test]
fn the_oci_suite_finds_what_docker_registry_is_known_to_fail() {
    let registry = DockerRegistry::start();
    let (_, failed) = oci_suite(&registry.url());
    assert_eq!(failed.len(), 6, "{failed:#?}");
    assert!(failed.iter().any(|name| name.contains("Out-of-order")), "{failed:#?}");
}

#[test]
fn h2spec_passes() {
    // h2spec sends a right request and then something wrong on the same stream, and wants to hear of that.
    // A server that has answered by then is right to be done with the stream, so the outcome would depend
    // on who is faster. The upstream takes its time here, so that the server is always slower.
    let upstream = FakeUpstream::start();
    upstream.always("", "/", &[Fault::Delay(Duration::from_millis(100))]);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let scratch = Scratch::new();
    let report = scratch.path().join("junit.xml");
    let mut h2spec = Command::new(tools::program("h2spec"));
    h2spec.args(["--tls", "--insecure", "--timeout", "5", "--host", "127.0.0.1"]);
    h2spec.args(["--port", &outrider.https_port().to_string()]);
    h2spec.args(["--path", &registry::blob_path("team/app", &sha256(b"not there"))]);
    h2spec.arg("--junit-report").arg(&report);
    let output = run(h2spec);
    assert!(report.is_file(), "{}{}", output.out, output.err);
    let (cases, failed) = read_junit(&report);
    assert!(cases >= 140, "all of the suite ran: {cases}\n{}", output.out);
    eprintln!("{cases} cases, {} failed", failed.len());
    assert_failures(&failed, &H2SPEC_EXPECTED_FAILURES);
    outrider.client().get("/v2/").expect(200);
}

/// What h2spec does to a server is right or not by who is faster, but no server may break by it.
#[test]
fn h2spec_in_the_middle_of_a_body_leaves_the_server_serving() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let digest = registry::try_push_blob(&client, "suite/h2", &bytes(1, 200_000)).expect("pushed");
    for _ in 0..5 {
        let mut h2spec = Command::new(tools::program("h2spec"));
        h2spec.args(["--tls", "--insecure", "--timeout", "1", "--host", "127.0.0.1"]);
        h2spec.args(["--port", &outrider.https_port().to_string()]);
        h2spec.args(["--path", &registry::blob_path("suite/h2", &digest)]);
        run(h2spec);
        client.get("/v2/").expect(200);
    }
}
