//! `[control]`: the control plane that the edge follows.

use std::path::PathBuf;

use outrider_push::message::PREFIXES_MAX;
use outrider_settings::is_host_and_port;
use serde::{Deserialize, Serialize};

use super::Invalid;

/// The most nodes that are named.
const NODES_MAX: usize = 16;
/// The longest prefix of a key.
const PREFIX_BYTES_MAX: usize = 512;

/// The control plane that the edge follows. Nothing has to be written here by an edge that joined with
/// `outrider cluster join --role edge`; one that did not follows none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlSection {
    /// A node of the control plane runs in this process, the only one of its cluster, with its folder `node` in
    /// `data.dir`, and its API is on `listen.admin`. Default false; `outrider up` has it.
    pub embedded: bool,
    /// `HOST:PORT` of nodes. Default: those that it was told of when it joined.
    pub nodes: Vec<String>,
    /// `HOST:PORT` at which other edges reach this one, over UDP. Default: `listen.https`, where that is one
    /// address; else none does, and what is pushed here is had from here alone.
    pub advertise: Option<String>,
    /// The folder of its certificate and of what it knows of the state. Default: `control` in `data.dir`.
    pub dir: Option<PathBuf>,
    /// It keeps a copy of the state fragments whose keys begin with one of these; `""` for all of them.
    /// Default none.
    pub fragments: Vec<String>,
}

impl ControlSection {
    /// Whether something is written here, so that an edge that did not join is a mistake.
    pub fn is_wanted(&self) -> bool {
        *self != ControlSection::default()
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.nodes.len() > NODES_MAX {
            return Err(Invalid::new(
                "control.nodes",
                format!("{} nodes", self.nodes.len()),
                format!("at most {NODES_MAX} are tried in turn"),
                "leave some out",
            ));
        }
        if let Some(node) = self.nodes.iter().find(|node| !is_host_and_port(node)) {
            return Err(Invalid::new(
                "control.nodes",
                node,
                "it is not a host and a port",
                "write HOST:PORT, for example \"control1.example.com:9191\"",
            ));
        }
        if let Some(address) = self.advertise.as_ref().filter(|address| !is_host_and_port(address))
        {
            return Err(Invalid::new(
                "control.advertise",
                address,
                "it is not a host and a port",
                "write HOST:PORT, for example \"edge1.example.com:8443\"",
            ));
        }
        if self.dir.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
            return Err(Invalid::new(
                "control.dir",
                "",
                "it is empty",
                "leave it out, for a folder in data.dir",
            ));
        }
        if self.fragments.len() > PREFIXES_MAX
            || self.fragments.iter().any(|prefix| prefix.len() > PREFIX_BYTES_MAX)
        {
            return Err(Invalid::new(
                "control.fragments",
                format!("{} prefixes", self.fragments.len()),
                format!("at most {PREFIXES_MAX} prefixes of {PREFIX_BYTES_MAX} bytes are possible"),
                "name fewer and shorter ones",
            ));
        }
        Ok(())
    }
}
