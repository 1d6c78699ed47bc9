//! `POST /v1/batch`: writes and checks of different fragments, all of them or none. Values are base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use outrider_state::request::{BATCH_BYTES_MAX, BATCH_WRITES_MAX};
use outrider_state::{Expect, Operation, Outcome, Request as StateRequest, Write};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Refusal, json_answer, refusal, tagged, written};
use super::{Admin, input};

/// The largest body: base64 of all values, and room for what stands around them.
const BODY_BYTES_MAX: usize = BATCH_BYTES_MAX / 3 * 4 + BATCH_WRITES_MAX * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchJson {
    writes: Vec<WriteJson>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum WriteJson {
    Put {
        key: String,
        value: String,
        #[serde(default)]
        expect: Option<ExpectJson>,
    },
    Delete {
        key: String,
        #[serde(default)]
        expect: Option<ExpectJson>,
    },
    Check {
        key: String,
        expect: ExpectJson,
    },
}

/// A version, or one of two words.
#[derive(Deserialize)]
#[serde(untagged)]
enum ExpectJson {
    Version(u64),
    Word(String),
}

impl ExpectJson {
    fn read(self) -> Result<Expect, String> {
        match self {
            Self::Version(0) => Err("there is no version 0; write \"absent\"".to_owned()),
            Self::Version(version) => Ok(Expect::Version(version)),
            Self::Word(word) if word == "absent" => Ok(Expect::Absent),
            Self::Word(word) if word == "present" => Ok(Expect::Present),
            Self::Word(word) => {
                Err(format!("{word:?} is none of \"absent\", \"present\", a version"))
            }
        }
    }
}

impl WriteJson {
    fn read(self) -> Result<Write, String> {
        let any = |expect: Option<ExpectJson>| expect.map_or(Ok(Expect::Any), ExpectJson::read);
        Ok(match self {
            Self::Put { key, value, expect } => {
                let value = STANDARD.decode(value).map_err(|error| format!("base64: {error}"))?;
                Write::Put { key, value, expect: any(expect)? }
            }
            Self::Delete { key, expect } => Write::Delete { key, expect: any(expect)? },
            Self::Check { key, expect } => Write::Check { key, expect: expect.read()? },
        })
    }
}

fn writes(json: BatchJson) -> Result<Vec<Write>, String> {
    let writes = json.writes.into_iter().enumerate();
    let read = |(index, write): (usize, WriteJson)| {
        write.read().map_err(|why| format!("write {index}: {why}"))
    };
    writes.map(read).collect()
}

pub(crate) async fn answer(admin: &Admin, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    input::no_condition(&head.headers)?;
    let id = input::request_id(&head.headers)?;
    let _place = admin.body_place()?;
    let batch: BatchJson = input::json(admin, body, BODY_BYTES_MAX).await?;
    let writes = writes(batch).map_err(|why| refusal(StatusCode::BAD_REQUEST, why))?;
    let request = StateRequest { id, operation: Operation::Batch(writes) };
    Ok(match admin.consensus.write(request).await {
        // Nothing but checks, or removals of what was absent, writes nothing.
        Ok(Outcome::Done { version: 0 }) => {
            json_answer(StatusCode::OK, &json!({ "version": Value::Null }))
        }
        Ok(Outcome::Done { version }) => {
            tagged(json_answer(StatusCode::OK, &json!({ "version": version })), version)
        }
        other => written(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_strictly() {
        let read = |text: &str| {
            serde_json::from_str::<BatchJson>(text).map_err(|e| e.to_string()).and_then(writes)
        };
        let put = read(r#"{"writes":[{"op":"put","key":"a","value":"aGk=","expect":"absent"}]}"#);
        let wanted =
            Write::Put { key: "a".to_owned(), value: b"hi".to_vec(), expect: Expect::Absent };
        assert_eq!(put.unwrap(), [wanted]);
        let two = r#"{"writes":[{"op":"delete","key":"a"},{"op":"check","key":"b","expect":7}]}"#;
        assert_eq!(read(two).unwrap()[1].condition(), ("b", Expect::Version(7)));
        for (bad, why) in [
            (r#"{"writes":[{"op":"put","key":"a","value":"*"}]}"#, "write 0: base64"),
            (r#"{"writes":[{"op":"check","key":"a"}]}"#, "expect"),
            (r#"{"writes":[{"op":"check","key":"a","expect":"x"}]}"#, "none of"),
            (r#"{"writes":[{"op":"check","key":"a","expect":0}]}"#, "no version 0"),
            (r#"{"writes":[{"op":"swap","key":"a"}]}"#, "swap"),
            (r#"{"writes":[{"op":"delete","key":"a","if":1}]}"#, "if"),
            (r#"{"writes":[],"more":1}"#, "more"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(why), "{bad} gave {error}");
        }
    }
}
