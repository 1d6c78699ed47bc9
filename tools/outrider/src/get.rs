//! `outrider get`: an artifact or an image from an edge, with a progress bar.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use outrider_artifact::Digest;
use outrider_client::image::Platforms;
use outrider_client::manifest::Platform;
use outrider_client::{
    Artifact, Client, ClientError, Credential, Image, Options, Place, Progress, Protocol, Roots,
    Silent,
};

use crate::progress::{self, Bar};

/// Where `outrider up` serves.
const EDGE_DEFAULT: &str = "https://127.0.0.1:8443";
/// What was asked for is not there.
const NOT_THERE: u8 = 3;
/// What came is not what was asked for.
const WRONG_CONTENT: u8 = 4;

/// What `get` is asked.
#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    /// A digest (sha256:...), or an image: [HOST[:PORT]/]NAME[:TAG][@DIGEST]
    #[arg(value_name = "REFERENCE|DIGEST")]
    wanted: String,
    /// The edge; a HOST of the reference then names the registry that it mirrors [default: the reference's HOST, else https://127.0.0.1:8443]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Trust the certificates of this PEM file, and no others [default: the system's; those of `outrider up` for an edge on this machine]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// auto (HTTP/3, and HTTPS where that does not get through), h3, native or https
    #[arg(long, value_name = "PROTOCOL", default_value = "auto")]
    protocol: Protocol,
    /// Where to write the content of a digest [default: its hexadecimal digits]
    #[arg(long, value_name = "PATH", conflicts_with = "oci_layout")]
    output: Option<PathBuf>,
    /// Where to write an image, as an OCI image layout [default: the last part of its name]
    #[arg(long, value_name = "DIR")]
    oci_layout: Option<PathBuf>,
    /// The repository of a digest; without it only what the edge holds is found
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// Only these bytes of a digest, which are not verified: FIRST-LAST, or FIRST- to the end
    #[arg(long, value_name = "FIRST-[LAST]", value_parser = range)]
    range: Option<(u64, Option<u64>)>,
    /// Which image of an index: OS/ARCHITECTURE[/VARIANT], or all [default: linux on this machine's processor]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Layers that are fetched at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Who asks: a file with a token, or NAME:SECRET, on its first line [default: what `docker login` wrote for the edge]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// Why nothing was got.
#[derive(Debug)]
pub(crate) enum GetError {
    /// It was asked wrongly.
    Asked(String),
    /// It failed.
    Failed(ClientError),
}

impl From<ClientError> for GetError {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

impl GetError {
    /// What to say, and the exit code. `failed` and `wrongly` are those of the whole command.
    pub(crate) fn explain(&self, failed: u8, wrongly: u8) -> (String, u8) {
        let error = match self {
            Self::Asked(text) => return (text.clone(), wrongly),
            Self::Failed(error) => error,
        };
        let code = match error {
            ClientError::Reference { .. } | ClientError::Url { .. } => wrongly,
            ClientError::Status { status: 404, .. } => NOT_THERE,
            ClientError::Digest { .. } => WRONG_CONTENT,
            _ => failed,
        };
        (error.to_string(), code)
    }
}

/// Who asks.
fn credential(arguments: &GetArguments, from: &url::Url) -> Result<Option<Credential>, GetError> {
    let Some(file) = &arguments.token_file else {
        // By the native protocol a token is needed, and that of docker is a name and a secret.
        return Ok(docker_login(from).filter(|_| arguments.protocol != Protocol::Native));
    };
    let wrong = |why: String| GetError::Asked(format!("--token-file {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let credential = Credential::parse(&text);
    credential
        .map(Some)
        .ok_or_else(|| wrong("its first line is no token, and no NAME:SECRET".into()))
}

/// What `docker login` wrote for the edge.
fn docker_login(from: &url::Url) -> Option<Credential> {
    let folder = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    let config = std::fs::read(folder.join("config.json")).ok()?;
    let host = from.host_str()?;
    let authority = from.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Credential::of_docker(&config, &authority)
}

/// What is to be written, and where.
enum Task {
    Image(Image, PathBuf),
    Digest(Digest, Place, PathBuf),
    Range(Digest, Place, (u64, Option<u64>), PathBuf),
}

/// Does it.
pub(crate) fn run(arguments: &GetArguments, local_ca: Option<PathBuf>) -> Result<String, GetError> {
    let artifact: Artifact = arguments.wanted.parse()?;
    let options = options(arguments, &artifact, local_ca)?;
    let task = task(arguments, artifact)?;
    let client = Client::new(options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| GetError::Asked(format!("the system gives no event queue: {error}")))?;
    let bar = Arc::new(Bar::new());
    let drawing = (!arguments.quiet).then(|| progress::draw(&bar));
    let silent = Silent;
    let shown: &dyn Progress = if arguments.quiet { &silent } else { &*bar };
    let start = Instant::now();
    let result = runtime.block_on(carry_out(&client, &task, shown));
    drop(drawing);
    let done = result?;
    let took = progress::rate(done.received_bytes, start.elapsed());
    Ok(format!("{}: {took}{}\n", done.what, done.how))
}

struct Done {
    what: String,
    how: String,
    received_bytes: u64,
}

async fn carry_out(
    client: &Client,
    task: &Task,
    progress: &dyn Progress,
) -> Result<Done, ClientError> {
    let over = |used: Option<outrider_client::Used>| {
        used.map_or_else(|| ", all of it was here".to_owned(), |used| format!(" over {used}"))
    };
    match task {
        Task::Image(image, folder) => {
            let pulled = client.pull(image, folder, progress).await?;
            Ok(Done {
                what: format!("{}  {image}@{}", folder.display(), pulled.digest),
                how: over((pulled.received_bytes > 0).then_some(pulled.protocol)),
                received_bytes: pulled.received_bytes,
            })
        }
        Task::Digest(digest, place, file) => {
            let fetched = client.fetch(place, digest, file, progress).await?;
            Ok(Done {
                what: format!("{}  {digest}", file.display()),
                how: over(fetched.protocol),
                received_bytes: fetched.received_bytes,
            })
        }
        Task::Range(digest, place, range, file) => {
            let fetched = client.fetch_range(place, digest, *range, file, progress).await?;
            Ok(Done {
                what: format!("{}  a part of {digest}, not verified", file.display()),
                how: over(fetched.protocol),
                received_bytes: fetched.received_bytes,
            })
        }
    }
}

fn options(
    arguments: &GetArguments,
    artifact: &Artifact,
    local_ca: Option<PathBuf>,
) -> Result<Options, GetError> {
    let host = match artifact {
        Artifact::Image(image) => image.host.as_ref(),
        Artifact::Digest(_) => None,
    };
    let from = match (&arguments.from, host) {
        (Some(from), _) => from.clone(),
        (None, Some(host)) => format!("https://{host}"),
        (None, None) => EDGE_DEFAULT.to_owned(),
    };
    let url: url::Url = from.parse().map_err(|error| {
        GetError::Asked(format!("--from {from}: {error}; write https://HOST[:PORT]"))
    })?;
    let local = url.host_str().is_some_and(is_this_machine);
    let mut options = Options::new(url);
    options.protocol = arguments.protocol;
    options.roots = match (&arguments.ca, local_ca.filter(|file| local && file.is_file())) {
        (Some(file), _) => Roots::File(file.clone()),
        (None, Some(file)) => Roots::File(file),
        (None, None) => Roots::System,
    };
    options.platforms = match arguments.platform.as_deref() {
        None => Platforms::default(),
        Some("all") => Platforms::All,
        Some(text) => Platforms::One(
            text.parse::<Platform>()
                .map_err(|error| GetError::Asked(format!("--platform {text}: {error}")))?,
        ),
    };
    options.parallel = usize::from(arguments.parallel);
    options.credential = credential(arguments, &options.from)?;
    Ok(options)
}

fn task(arguments: &GetArguments, artifact: Artifact) -> Result<Task, GetError> {
    let asked = |text: &str| GetError::Asked(text.to_owned());
    match artifact {
        Artifact::Image(image) => {
            if arguments.output.is_some() || arguments.range.is_some() {
                return Err(asked(
                    "an image is written as an OCI image layout: use --oci-layout DIR; --output and \
                     --range are for digests",
                ));
            }
            let folder = arguments.oci_layout.clone().unwrap_or_else(|| {
                let name: &str = &image.repository;
                Path::new(name.rsplit('/').next().unwrap_or(name)).to_owned()
            });
            Ok(Task::Image(image, folder))
        }
        Artifact::Digest(digest) => {
            if arguments.oci_layout.is_some() {
                return Err(asked("--oci-layout is for images; use --output PATH for a digest"));
            }
            let repository = arguments
                .repository
                .as_ref()
                .map(|name| name.parse())
                .transpose()
                .map_err(|error| GetError::Asked(format!("--repository: {error}")))?;
            let place = Place { repository, ns: None };
            let file = arguments.output.clone().unwrap_or_else(|| digest.hex().into());
            Ok(match arguments.range {
                Some(range) => Task::Range(digest, place, range, file),
                None => Task::Digest(digest, place, file),
            })
        }
    }
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `FIRST-LAST` or `FIRST-`.
fn range(text: &str) -> Result<(u64, Option<u64>), String> {
    let wrong =
        || "a range is FIRST-LAST or FIRST-, in bytes from 0, for example 0-1023".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let first = first.parse().map_err(|_| wrong())?;
    let last = match last {
        "" => None,
        last => Some(last.parse().map_err(|_| wrong())?),
    };
    if last.is_some_and(|last| last < first) {
        return Err(wrong());
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        get: GetArguments,
    }

    fn parse(line: &str) -> Result<GetArguments, String> {
        let words = std::iter::once("get").chain(line.split_whitespace());
        Command::try_parse_from(words).map(|command| command.get).map_err(|e| e.to_string())
    }

    fn resolved(line: &str) -> Result<(Options, Task), GetError> {
        let arguments = parse(line).unwrap();
        let artifact: Artifact = arguments.wanted.parse()?;
        Ok((
            options(&arguments, &artifact, Some("/etc/passwd".into()))?,
            task(&arguments, artifact)?,
        ))
    }

    #[test]
    fn the_edge_is_named_or_in_the_reference_or_on_this_machine() {
        for (line, edge) in [
            ("alpine", "https://127.0.0.1:8443/"),
            ("edge.example:8443/alpine", "https://edge.example:8443/"),
            ("docker.io/alpine --from http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
        ] {
            assert_eq!(resolved(line).unwrap().0.from.as_str(), edge, "{line}");
        }
    }

    #[test]
    fn what_up_made_is_trusted_on_this_machine_and_nowhere_else() {
        // Any file that is there stands for its CA.
        assert!(matches!(resolved("alpine").unwrap().0.roots, Roots::File(_)));
        assert!(matches!(resolved("edge.example/alpine").unwrap().0.roots, Roots::System));
        let given = resolved("alpine --ca /x").unwrap().0.roots;
        assert!(matches!(given, Roots::File(file) if file == Path::new("/x")));
    }

    #[test]
    fn an_image_goes_into_a_layout_and_a_digest_into_a_file() {
        let digest = Digest::sha256(b"x");
        let image = resolved("library/alpine").unwrap().1;
        assert!(matches!(image, Task::Image(_, folder) if folder == Path::new("alpine")));
        let file = resolved(&digest.to_string()).unwrap().1;
        assert!(matches!(file, Task::Digest(_, _, file) if file == Path::new(&digest.hex())));
        let part = resolved(&format!("{digest} --range 5-9 --output /p")).unwrap().1;
        assert!(matches!(part, Task::Range(_, _, (5, Some(9)), file) if file == Path::new("/p")));
        for line in ["alpine --output x", "alpine --range 0-1", &format!("{digest} --oci-layout x")]
        {
            let error = resolved(line).err().unwrap();
            assert_eq!(error.explain(1, 2).1, 2, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_apart_by_the_exit_code() {
        let status = |status| {
            let (path, message) = (String::new(), None);
            GetError::Failed(ClientError::Status { status, path, message, retry_after_s: None })
        };
        assert_eq!(status(404).explain(1, 2).1, NOT_THERE);
        assert_eq!(status(500).explain(1, 2).1, 1);
        let (expected, found) = (Digest::sha256(b"a"), Digest::sha256(b"b").into());
        let wrong = GetError::Failed(ClientError::Digest { expected, found });
        assert_eq!(wrong.explain(1, 2).1, WRONG_CONTENT);
        assert_eq!(resolved("NOT-A-REFERENCE").err().unwrap().explain(1, 2).1, 2);
        assert_eq!(resolved("a --from ftp").err().unwrap().explain(1, 2).1, 2);
    }

    #[test]
    fn ranges_are_bytes_from_first_to_last() {
        assert_eq!(range("0-0"), Ok((0, Some(0))));
        assert_eq!(range("7-"), Ok((7, None)));
        for text in ["", "-", "-5", "5-4", "a-b", "1", "0-1-2"] {
            assert!(range(text).is_err(), "{text}");
        }
    }
}
