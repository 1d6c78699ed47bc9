//! What the parts of an edge are started with, from its configuration and sizes.

use outrider_cache::{CacheConfig, Placement, SsdConfig, Stripes};
use outrider_gateway::names::NamesLimits;
use outrider_gateway::{GatewaySettings, Upstream};
use outrider_transport::{Limits, PinBudget};
use outrider_uplink::UpstreamId;

use crate::config::{Config, Listen};
use crate::data_dir::DataDir;
use crate::events::ACCESSES_BYTES_MAX;
use crate::run::RunError;
use crate::shard_main::ShardCache;
use crate::sizes::Sizes;
use crate::state::Seat;
use crate::units::Size;

/// The share of the arena that clients may hold which do not take what they asked for.
const PINNED_SHARE: usize = 2;
/// The share of a shard's memory that it may use for what other shards have, where there are others.
const TABLE_SHARE: usize = 16;
/// The stripes of a store that has no disk: digests are spread over the shards as if there were so many.
const STRIPES_WITHOUT_DISK: u16 = 64;

/// A seat for each shard, with a CPU of its own where pinning is wanted.
pub(crate) fn seats(config: &Config, shards: usize, cpus: &[usize]) -> Vec<Seat> {
    let cpus = if config.shards.pin { cpus } else { &[] };
    if config.shards.pin && cpus.len() < shards {
        let cpus = cpus.len();
        tracing::warn!(shards, cpus, "there are fewer CPUs than shards, so that some share one");
    }
    let cpu = |id: usize| cpus.get(id % cpus.len().max(1)).copied();
    (0..shards).map(|id| Seat::new(id, cpu(id))).collect()
}

/// The names in the certificate besides the ones that it always has.
pub(crate) fn certificate_names(config: &Config) -> Vec<String> {
    let mut names = config.tls.names.clone();
    if let Listen::At(address) = config.listen.https
        && !address.ip().is_unspecified()
        && !address.ip().is_loopback()
    {
        names.push(address.ip().to_string());
    }
    names
}

/// Of one shard: what its clients hold, and what clients of others hold of its arena.
pub(crate) fn pin_budget(config: &Config, arena_bytes: usize) -> PinBudget {
    PinBudget::new(arena_bytes / PINNED_SHARE, bytes_usize(config.limits.pinned_connection))
}

pub(crate) fn limits(config: &Config) -> Limits {
    let limits = &config.limits;
    Limits {
        connections_max: limits.connections,
        header_bytes_max: bytes_usize(limits.header_bytes),
        header_time: limits.header_time.0,
        handshake_time: limits.handshake_time.0,
        idle_time: limits.idle_time.0,
        body_idle_time: limits.body_idle_time.0,
        body_bytes_per_second_min: limits.body_bytes_per_second_min.0,
        stall_time: limits.stall_time.0,
        pressed_bytes_per_second_min: limits.pressed_bytes_per_second_min.0,
        streams_max: limits.streams,
        ..Limits::default()
    }
}

pub(crate) fn names_limits(config: &Config) -> NamesLimits {
    NamesLimits {
        mirrored_tags_max: config.names.mirrored_tags_max,
        outbox_records_max: config.names.outbox_records_max,
        page_cache_bytes: bytes_usize(config.names.page_cache),
        ..NamesLimits::default()
    }
}

pub(crate) fn gateway_settings(config: &Config, shards: usize, followed: bool) -> GatewaySettings {
    GatewaySettings {
        region: config.site.region.clone(),
        tag_ttl: config.tags.ttl.0,
        tag_stale: config.tags.stale.0,
        upload_sessions_max: config.uploads.sessions_max.div_ceil(shards),
        upload_idle: config.uploads.idle.0,
        accesses_bytes_max: if followed { ACCESSES_BYTES_MAX } else { 0 },
        replicas_time_max: config.uploads.replicas_time.0,
    }
}

pub(crate) fn gateway_upstreams(config: &Config) -> Vec<Upstream> {
    let upstream = |(index, upstream): (usize, &crate::config::Upstream)| Upstream {
        id: UpstreamId(u16::try_from(index).expect("UPSTREAMS_MAX is far below 2^16")),
        name: upstream.name.clone(),
        host: upstream.host(),
        tag_ttl: upstream.tag_ttl.map(|ttl| ttl.0),
        content_ttl: upstream.content_ttl.map(|ttl| ttl.0),
    };
    config.upstream.iter().enumerate().map(upstream).collect()
}

pub(crate) fn placement(sizes: Sizes, shards: usize) -> Placement {
    let stripes = if sizes.ssd == Size(0) { STRIPES_WITHOUT_DISK } else { stripes_u16(sizes) };
    Placement::new(stripes, u16::try_from(shards).expect("SHARDS_MAX is far below 2^16"))
}

fn stripes_u16(sizes: Sizes) -> u16 {
    u16::try_from(sizes.stripes).expect("STRIPES_MAX is far below 2^16")
}

/// Opens the stripes, and gives each shard its own with its share of the memory.
pub(crate) fn cache_configs(
    config: &Config,
    sizes: Sizes,
    (dir, void_through): (&DataDir, u64),
    shards: usize,
) -> Result<Vec<ShardCache>, RunError> {
    let all = cache_config(config, sizes, (dir, void_through), shards);
    let count = u16::try_from(shards).expect("SHARDS_MAX is far below 2^16");
    let mut stripes: Vec<Option<Stripes>> = match &all.ssd {
        None => (0..count).map(|_| None).collect(),
        Some(ssd) => Stripes::open(ssd, all.geometry)?.split(count).into_iter().map(Some).collect(),
    };
    let memory = bytes_usize(Size(sizes.ram.0 / shards as u64));
    let table_bytes_max = if shards > 1 { memory / TABLE_SHARE } else { 0 };
    let cache = |(shard, stripes): (usize, &mut Option<Stripes>)| ShardCache {
        config: CacheConfig {
            // Shards should not all decide alike; otherwise the seed is of no matter.
            seed: shard as u64,
            arena_bytes: memory - table_bytes_max,
            ..all.clone()
        },
        stripes: stripes.take(),
        table_bytes_max,
    };
    Ok(stripes.iter_mut().enumerate().map(cache).collect())
}

fn cache_config(
    config: &Config,
    sizes: Sizes,
    (dir, void_through): (&DataDir, u64),
    shards: usize,
) -> CacheConfig {
    let cache = &config.cache;
    let ssd = (sizes.ssd != Size(0)).then(|| SsdConfig {
        upload_share: cache.upload_share,
        // Of all shards together.
        queue_depth: cache.queue_depth.div_ceil(u32::try_from(shards).unwrap_or(1)),
        stripe_errors_max: cache.stripe_errors_max,
        void_through,
        ..SsdConfig::new(dir.ssd(), sizes.ssd.0, stripes_u16(sizes))
    });
    CacheConfig {
        ssd,
        weights: cache.importance.weights(),
        object_bytes_max: cache.object_max.0,
        ..CacheConfig::new(0)
    }
}

/// Sizes are below 2^63 and this program is for 64-bit machines; on others it saturates.
fn bytes_usize(size: Size) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}
