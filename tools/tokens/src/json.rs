//! Values as tokens and key sets have them. A name that stands twice in an object is an error of serde's derive.

use serde::{Deserialize, Deserializer, de};

/// One text or several, at most so many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OneOrMany(pub(crate) Vec<String>);

/// Audiences of one token.
const TEXTS_MAX: usize = 16;

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    if texts.len() >= TEXTS_MAX {
                        return Err(de::Error::custom("the list is too long"));
                    }
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Seconds since 1970, as a whole or a broken number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) u64);

/// Beyond the year 9999 nothing is a time.
const SECONDS_MAX: f64 = 253_402_300_799.0;

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        if !(0.0..=SECONDS_MAX).contains(&number) {
            return Err(de::Error::custom("a time is a number of seconds since 1970"));
        }
        // Within the bounds, so that it fits.
        Ok(Self(number as u64))
    }
}
