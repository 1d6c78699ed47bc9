//! Records on a stream: their length in 4 bytes, then they themselves.

use std::io;

use quinn::{ReadExactError, RecvStream, SendStream};

/// Reads one record; nothing at the end of the stream.
///
/// # Errors
/// Those of the stream, and of a record that is longer than `bytes_max`.
pub async fn read(from: &mut RecvStream, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(io::Error::other(error)),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > bytes_max {
        return Err(io::Error::other(format!(
            "a record has {length} bytes, {bytes_max} are allowed"
        )));
    }
    let mut record = Vec::new();
    // Grows with what comes, so that a length alone allocates nothing.
    while record.len() < length {
        match from.read_chunk(length - record.len(), true).await.map_err(io::Error::other)? {
            Some(chunk) => record.extend_from_slice(&chunk.bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(Some(record))
}

/// Writes one record; waits while the other side does not take it.
///
/// # Errors
/// Those of the stream.
pub async fn write(to: &mut SendStream, record: &[u8]) -> io::Result<()> {
    let length = u32::try_from(record.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes()).await.map_err(io::Error::other)?;
    to.write_all(record).await.map_err(io::Error::other)
}
