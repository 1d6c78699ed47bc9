//! `outrider secret`: what a customer logs in with, and the line by which an edge knows it.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use outrider_tokens::is_customer;
use outrider_tokens::secret::{RANDOM_BYTES, line, secret};

use crate::cli::SecretArguments;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// Nobody is called so.
    #[error("{0:?}: a customer is called by 1 to 128 bytes without spaces")]
    Customer(String),
    /// The system has no random numbers.
    #[error("the system has no random numbers: {0}")]
    Random(getrandom::Error),
    /// The file cannot be written.
    #[error("cannot write {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl SecretError {
    /// Whether it was asked wrongly.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::Customer(_))
    }
}

/// Makes one; gives what is to be printed.
pub(crate) fn run(arguments: &SecretArguments) -> Result<String, SecretError> {
    let SecretArguments { customer, file } = arguments;
    if !is_customer(customer) || customer.contains('#') {
        return Err(SecretError::Customer(customer.clone()));
    }
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(SecretError::Random)?;
    let secret = secret(&random);
    let line = line(customer, &secret);
    let Some(path) = file else {
        return Ok(format!("{secret}\n\nFor auth.secrets_file of the edge:\n\n{line}\n"));
    };
    let failed = |source| SecretError::File { path: path.display().to_string(), source };
    let mut file =
        OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
    Ok(format!("{secret}\n"))
}
