//! Digests, repository names, tags and references: whatever is taken is written back as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_artifact::{Digest, Reference, RepositoryName, Tag};

fuzz_target!(|text: &str| {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        let again = Digest::from_value(digest.algorithm(), digest.value()).expect("its own value");
        assert_eq!(again, digest);
    }
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert_eq!(&*name, text);
        assert!(text.len() <= 255 && !text.contains("..") && !text.contains("//"));
        assert!(!text.starts_with('/') && !text.ends_with('/'));
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert_eq!(&*tag, text);
        assert!((1..=128).contains(&text.len()) && text.is_ascii());
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string(), text);
    }
});
