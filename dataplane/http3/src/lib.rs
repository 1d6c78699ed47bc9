//! HTTP/3 (RFC 9114) with static QPACK (RFC 9204), without I/O: no socket, no clock, no task, no QUIC
//! library. Whoever owns the QUIC connection puts in what its streams have received, and takes events
//! and bytes to send out, in the manner of quinn-proto.
//!
//! ```
//! use bytes::Bytes;
//! use outrider_http3::{Connection, Event, Limits, client, response};
//!
//! let mut server = Connection::new(Limits::default());
//! // Opens a unidirectional stream and writes this, once.
//! let _preface = server.control_preface();
//!
//! let get = client::encode_head(&client::RequestHead::get("edge.example", "/v2/"));
//! server.on_request_data(0, get, true).unwrap();
//! let Some(Event::Request { stream: 0, head, body_follows: false }) = server.poll_event() else {
//!     panic!()
//! };
//! assert_eq!(head.uri.path(), "/v2/");
//!
//! let (parts, body) = http::Response::new(Bytes::from_static(b"{}")).into_parts();
//! let head = response::encode_head(&parts, Some(body.len() as u64));
//! // send_stream.write_chunks(&mut [head, body]); send_stream.finish();
//! # let _ = head;
//! ```
//!
//! - [`Connection`]: the server's half: streams in, [`Event`]s out. [`Limits`] bound all that it keeps.
//!   [`HeadMemo`] remembers requests, for those who are asked the same often.
//! - [`response`]: heads of responses, heads of DATA frames.
//! - [`client`]: the client's half, for load generators and small clients.
//! - [`qpack`], [`huffman`]: field sections; the dynamic table is never used, in neither direction.
//! - [`frame`], [`varint`]: the layer below.
//! - [`error`]: codes; an error of the connection is another type than one of a stream.
//!
//! What it never does: copy a body, keep a frame that it does not know, or keep more than [`Limits`] say.

#![forbid(unsafe_code)]

mod budget;
pub mod client;
mod connection;
pub mod error;
pub mod frame;
mod head;
pub mod huffman;
mod memo;
pub mod qpack;
pub mod response;
mod settings;
mod stream;
mod uni;
pub mod varint;

pub use connection::{Connection, Event, Limits};
pub use error::{Code, ConnectionError, StreamError};
pub use memo::HeadMemo;
pub use settings::Settings;
