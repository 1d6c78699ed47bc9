//! Content digests: `algorithm ":" lower-case hex`, as in the OCI image specification (descriptor,
//! section "Digests").

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// The longest digest that is accepted, in bytes of its value (sha512).
pub const DIGEST_BYTES_MAX: usize = 64;

/// The hash function of a digest. Both registered algorithms of the OCI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32 bytes: what every client uses.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// The registered name, as it stands before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the value in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no colon, or nothing before it.
    #[error("a digest is written ALGORITHM:HEX, for example sha256:e3b0c442…")]
    Form,
    /// The algorithm is not one that is served here.
    #[error("the digest algorithm is not sha256 or sha512")]
    Algorithm,
    /// The value has the wrong length.
    #[error("a {} digest has {} hexadecimal digits, this one has {found}", .algorithm.as_str(), .algorithm.bytes() * 2)]
    Length {
        /// The algorithm that was named.
        algorithm: Algorithm,
        /// How many characters stood after the colon.
        found: usize,
    },
    /// A character is not a lower-case hexadecimal digit.
    #[error("a digest is written in the digits 0-9 and a-f")]
    Hex,
}

/// The identity of an artifact: a hash function and its value. 65 bytes, `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    value: [u8; DIGEST_BYTES_MAX],
}

impl Digest {
    /// The SHA-256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::new(Algorithm::Sha256, sha2::Sha256::digest(bytes).as_slice())
    }

    /// A digest from its raw value.
    ///
    /// # Errors
    /// [`DigestError::Length`] when `value` is not as long as the algorithm's output.
    pub fn from_value(algorithm: Algorithm, value: &[u8]) -> Result<Self, DigestError> {
        if value.len() != algorithm.bytes() {
            return Err(DigestError::Length { algorithm, found: value.len() * 2 });
        }
        Ok(Self::new(algorithm, value))
    }

    fn new(algorithm: Algorithm, value: &[u8]) -> Self {
        let mut padded = [0; DIGEST_BYTES_MAX];
        padded[..value.len()].copy_from_slice(value);
        Self { algorithm, value: padded }
    }

    /// The hash function.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The value: 32 or 64 bytes.
    pub fn value(&self) -> &[u8] {
        &self.value[..self.algorithm.bytes()]
    }

    /// The first 16 bytes of the value: the key of in-memory tables. Two contents that share it are
    /// told apart by the whole digest, which stands in every record on disk.
    pub fn key(&self) -> [u8; 16] {
        let mut key = [0; 16];
        key.copy_from_slice(&self.value[..16]);
        key
    }

    /// The hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(self.value().len() * 2);
        for byte in self.value() {
            text.push(hex_digit(byte >> 4));
            text.push(hex_digit(byte & 15));
        }
        text
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(nibble)])
}

fn hex_value(digit: u8) -> Result<u8, DigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(DigestError::Hex),
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Form)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            "" => return Err(DigestError::Form),
            _ => return Err(DigestError::Algorithm),
        };
        if hex.len() != algorithm.bytes() * 2 {
            return Err(DigestError::Length { algorithm, found: hex.len() });
        }
        let mut value = [0; DIGEST_BYTES_MAX];
        for (byte, digits) in value.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = hex_value(digits[0])? << 4 | hex_value(digits[1])?;
        }
        Ok(Self { algorithm, value })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes content as it comes in. Cost: about 0.6 ns a byte with SHA instructions.
#[derive(Clone)]
pub enum ContentHasher {
    /// Makes a sha256 digest.
    Sha256(sha2::Sha256),
    /// Makes a sha512 digest.
    Sha512(sha2::Sha512),
}

impl ContentHasher {
    /// An empty hash of this kind.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    /// Which digest it makes.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all that was taken.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::new(Algorithm::Sha256, hash.finalize().as_slice()),
            Self::Sha512(hash) => Digest::new(Algorithm::Sha512, hash.finalize().as_slice()),
        }
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256(_) => "ContentHasher(sha256)",
            Self::Sha512(_) => "ContentHasher(sha512)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_published_one() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::sha256(b""));
    }

    #[test]
    fn upper_case_is_refused_since_it_would_be_a_second_name_for_one_content() {
        assert_eq!(
            EMPTY.to_uppercase().replace("SHA", "sha").parse::<Digest>(),
            Err(DigestError::Hex)
        );
    }

    #[test]
    fn each_malformed_digest_says_what_is_wrong() {
        assert_eq!("abc".parse::<Digest>(), Err(DigestError::Form));
        assert_eq!(":abc".parse::<Digest>(), Err(DigestError::Form));
        assert_eq!("md5:abc".parse::<Digest>(), Err(DigestError::Algorithm));
        let short = "sha256:abc".parse::<Digest>().unwrap_err();
        assert!(short.to_string().contains("64 hexadecimal digits, this one has 3"), "{short}");
    }

    #[test]
    fn hashing_in_pieces_is_hashing_at_once() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut pieces = ContentHasher::new(algorithm);
            pieces.update(b"out");
            pieces.update(b"rider");
            let mut whole = ContentHasher::new(algorithm);
            whole.update(b"outrider");
            assert_eq!(pieces.finish(), whole.finish());
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(bytes in proptest::collection::vec(any::<u8>(), 64)) {
            for digest in [
                Digest::from_value(Algorithm::Sha256, &bytes[..32]).unwrap(),
                Digest::from_value(Algorithm::Sha512, &bytes).unwrap(),
            ] {
                prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = text.parse::<Digest>();
        }
    }
}
