//! An image into an OCI image layout: its manifest, its configuration and its layers, some at a time.

use std::path::Path;

use futures_util::{StreamExt, TryStreamExt, stream};
use http::header;
use outrider_artifact::{Algorithm, ContentHasher, Digest, Reference};

use crate::blob::{self, Retry, Wanted};
use crate::client::Client;
use crate::connection::native::Content;
use crate::connection::{Request, Used};
use crate::error::ClientError;
use crate::layout::Layout;
use crate::manifest::{self, Descriptor, MANIFEST_BYTES_MAX, Manifest, Platform};
use crate::many;
use crate::progress::Progress;
use crate::reference::{Image, Place};

/// Indexes in indexes that are followed.
const DEPTH_MAX: u32 = 3;

/// Contents up to this are asked for together: what a round trip costs is more than what they cost.
const TOGETHER_BYTES_MAX: u64 = 1 << 20;

/// Which images of an index are fetched.
#[derive(Clone, Debug)]
pub enum Platforms {
    /// The one that runs on this.
    One(Platform),
    /// All of them, and the index.
    All,
}

impl Default for Platforms {
    fn default() -> Self {
        Self::One(Platform::of_this_machine())
    }
}

/// What was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The digest that the image has in the layout.
    pub digest: Digest,
    /// Bytes of all its content.
    pub size_bytes: u64,
    /// How much of it came in now.
    pub received_bytes: u64,
    /// Over which protocol its content came, the last of it.
    pub protocol: Used,
}

/// A manifest, verified.
struct Found {
    digest: Digest,
    media_type: String,
    bytes: Vec<u8>,
    content: Manifest,
    used: Used,
}

/// Pulls `image` into the layout in `folder`.
///
/// # Errors
/// [`ClientError`]. What has come in is left there, and is not fetched again the next time.
pub(crate) async fn pull(
    client: &Client,
    image: &Image,
    folder: &Path,
    platforms: &Platforms,
    progress: &dyn Progress,
) -> Result<Pulled, ClientError> {
    let place = image.place(client.is_edge(image.host.as_deref()));
    let layout = Layout::open(folder)?;
    let reference = match &image.reference {
        Reference::Tag(tag) => tag.to_string(),
        Reference::Digest(digest) => digest.to_string(),
    };
    let mut top = find(client, &place, &reference, progress).await?;
    let mut content = Vec::new();
    for _ in 0..DEPTH_MAX {
        let (Manifest::Index(entries), Platforms::One(platform)) = (&top.content, platforms) else {
            break;
        };
        let digest = choose(entries, platform, top.digest)?;
        top = find(client, &place, &digest.to_string(), progress).await?;
    }
    collect(client, &place, &layout, &top, &mut content, DEPTH_MAX, progress).await?;

    let fetched = stream::iter(groups(client, &content).into_iter().map(|group| {
        let (layout, place) = (&layout, &place);
        async move { together(client, place, layout, group, progress).await }
    }))
    .buffer_unordered(client.options().parallel.max(1))
    .try_fold((0, 0, None), |sum, group| async move {
        Ok(group.iter().fold(sum, |(size, received, used), fetched| {
            let used = fetched.protocol.or(used);
            (size + fetched.size_bytes, received + fetched.received_bytes, used)
        }))
    })
    .await?;
    // The name comes last: whoever finds it finds all of the image.
    let descriptor = Descriptor {
        media_type: top.media_type,
        digest: top.digest.to_string(),
        size: top.bytes.len() as u64,
        platform: None,
    };
    layout.name(&descriptor, &image.to_string())?;
    let (size_bytes, received_bytes, used) = fetched;
    let protocol = used.unwrap_or(top.used);
    Ok(Pulled { digest: top.digest, size_bytes, received_bytes, protocol })
}

/// Writes a manifest and those it names, and lists what they consist of, each once.
async fn collect(
    client: &Client,
    place: &Place,
    layout: &Layout,
    top: &Found,
    content: &mut Vec<Descriptor>,
    depth: u32,
    progress: &dyn Progress,
) -> Result<(), ClientError> {
    match &top.content {
        Manifest::Image(entries) => {
            for entry in entries {
                if !content.iter().any(|known| known.digest == entry.digest) {
                    content.push(entry.clone());
                }
            }
        }
        Manifest::Index(_) if depth == 0 => {
            let why = format!("indexes within indexes, more than {DEPTH_MAX} deep");
            return Err(ClientError::Manifest { digest: top.digest, why });
        }
        Manifest::Index(entries) => {
            for entry in entries {
                let found = find(client, place, &entry.digest, progress).await?;
                Box::pin(collect(client, place, layout, &found, content, depth - 1, progress))
                    .await?;
            }
        }
    }
    layout.put(&top.digest, &top.bytes)
}

/// What is asked for together: short contents in one round trip, where the protocol has that; all others
/// alone.
fn groups<'a>(client: &Client, content: &'a [Descriptor]) -> Vec<Vec<&'a Descriptor>> {
    let (short, long): (Vec<_>, Vec<_>) = content.iter().partition(|descriptor| {
        client.connector().asks_for_many() && descriptor.size <= TOGETHER_BYTES_MAX
    });
    let mut groups: Vec<_> = long.into_iter().map(|descriptor| vec![descriptor]).collect();
    if !short.is_empty() {
        groups.push(short);
    }
    groups
}

async fn together(
    client: &Client,
    place: &Place,
    layout: &Layout,
    group: Vec<&Descriptor>,
    progress: &dyn Progress,
) -> Result<Vec<blob::Fetched>, ClientError> {
    let mut wanted = Vec::with_capacity(group.len());
    for descriptor in group {
        let digest = descriptor.digest()?;
        let one = Wanted { place: place.clone(), digest, size_bytes: Some(descriptor.size) };
        wanted.push((one, layout.blob(&digest)?));
    }
    let attempts_max = client.options().attempts_max;
    many::fetch(client.connector(), place, &wanted, attempts_max, progress).await
}

fn choose(
    entries: &[Descriptor],
    platform: &Platform,
    index: Digest,
) -> Result<Digest, ClientError> {
    let entry = entries
        .iter()
        .find(|entry| entry.platform.as_ref().is_some_and(|other| platform.takes(other)));
    match entry {
        Some(entry) => Ok(entry.digest()?),
        None => {
            let there: Vec<String> = entries
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .map(|platform| format!("{}/{}", platform.os, platform.architecture))
                .collect();
            let (os, architecture) = (&platform.os, &platform.architecture);
            let why = format!("nothing in it is for {os}/{architecture}, but {}", there.join(", "));
            Err(ClientError::Manifest { digest: index, why })
        }
    }
}

/// Fetches a manifest by tag or digest, and verifies it.
async fn find(
    client: &Client,
    place: &Place,
    reference: &str,
    progress: &dyn Progress,
) -> Result<Found, ClientError> {
    let path = place.manifest(reference).ok_or_else(|| ClientError::Answer {
        path: reference.to_owned(),
        why: "a manifest is in a repository".to_owned(),
    })?;
    let content = reference.parse().ok().map(|digest| Content {
        place: place.clone(),
        digest,
        is_manifest: true,
    });
    let request =
        Request { path, accept: Some(manifest::ACCEPT), range: None, content, authorization: None };
    let mut retry = Retry::new(client.options().attempts_max);
    let (mut answer, bytes) = loop {
        let result = async {
            let mut answer = client.connector().get(&request, progress).await?;
            if answer.status != 200 {
                return Err(answer.into_error().await);
            }
            let bytes = answer.all(MANIFEST_BYTES_MAX).await?;
            Ok((answer, bytes))
        }
        .await;
        match result {
            Ok(found) => break found,
            Err(error) => retry.wait(error, progress).await?,
        }
    };
    client.connector().works();
    let expected: Option<Digest> = match reference.parse() {
        Ok(digest) => Some(digest),
        // By tag the edge says which one it is; what it says must at least be true.
        Err(_) => answer
            .headers
            .remove("docker-content-digest")
            .and_then(|value| value.to_str().ok()?.parse().ok()),
    };
    let mut hasher =
        ContentHasher::new(expected.map_or(Algorithm::Sha256, |digest| digest.algorithm()));
    hasher.update(&bytes);
    let digest = hasher.finish();
    if let Some(expected) = expected.filter(|expected| *expected != digest) {
        return Err(ClientError::Digest { expected, found: digest.into() });
    }
    let content = manifest::parse(&bytes).map_err(|why| ClientError::Manifest { digest, why })?;
    let media_type = answer.text(&header::CONTENT_TYPE).unwrap_or_default().to_owned();
    Ok(Found { digest, media_type, bytes, content, used: answer.used })
}
