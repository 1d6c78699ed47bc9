//! Where the third-party tools are. A missing one is a failure with a hint, never a skipped test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The cache outside the checkout: `$OUTRIDER_CACHE`, else `~/.cache/outrider`.
pub fn cache_dir() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = from("OUTRIDER_CACHE") {
        return dir.into();
    }
    let base = from("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(from("HOME").expect("HOME or OUTRIDER_CACHE is set")).join(".cache")
    });
    base.join("outrider")
}

/// The program `name`: as built by `tests/setup.sh`, else Debian's, else whatever PATH has.
pub fn program(name: &str) -> PathBuf {
    let places =
        [cache_dir().join("tools/bin"), "/usr/bin".into(), "/usr/sbin".into(), "/bin".into()];
    let path = std::env::var_os("PATH").unwrap_or_default();
    places
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run tests/setup.sh"))
}

/// A command of the program `name` that reads and writes nothing outside `home`.
pub fn command(name: &str, home: &Path) -> Command {
    let mut command = Command::new(program(name));
    command
        .current_dir(home)
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("XDG_RUNTIME_DIR", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("DOCKER_CONFIG", home.join("docker"))
        .env("REGISTRY_AUTH_FILE", home.join("auth.json"))
        .env("NO_PROXY", "127.0.0.1,localhost");
    let auth = home.join("auth.json");
    if !auth.exists() {
        std::fs::write(auth, "{}").expect("the home of a test is writable");
    }
    command
}

/// A command of `tests/peers/python/script`, run by the Python that has the clients.
pub fn python(script: &str, home: &Path) -> Command {
    let mut command = command("../python/bin/python", home);
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers/python");
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(scripts.join(script));
    command
}
