//! What OTLP destinations answer.

use super::wire::{Reader, WireError, for_each_field};
use crate::error::{CoreError, ErrorKind};

/// The partial success of an Export{Logs,Trace,Metrics}ServiceResponse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportResponse {
    /// Log records, spans or data points that were refused; never retried.
    pub rejected: u64,
    /// Why, or a warning where nothing was refused.
    pub message: String,
}

/// Reads a response; without `partial_success` nothing was rejected. Source: opentelemetry/proto/collector/*/v1, all three the same.
pub fn parse_export_response(data: &[u8]) -> Result<ExportResponse, CoreError> {
    const PARTIAL_SUCCESS: u32 = 1;
    const REJECTED: u32 = 1;
    const ERROR_MESSAGE: u32 = 2;
    let mut response = ExportResponse::default();
    for_each_field(Reader::new(data), |field| {
        if field.number != PARTIAL_SUCCESS {
            return Ok::<(), WireError>(());
        }
        for_each_field(field.message(), |field| {
            match field.number {
                // An int64: a negative count says nothing.
                REJECTED => response.rejected = field.scalar().and_then(|count| i64::try_from(count).ok()).unwrap_or(0) as u64,
                ERROR_MESSAGE => response.message = lossy(field.bytes()),
                _ => {}
            }
            Ok(())
        })
    })
    .map_err(|error| error.of_kind(ErrorKind::BodyInvalid))?;
    Ok(response)
}

/// The message of a google.rpc.Status; empty where the bytes are none.
pub fn parse_status(data: &[u8]) -> String {
    const MESSAGE: u32 = 2;
    let mut message = String::new();
    let read = for_each_field(Reader::new(data), |field| {
        if field.number == MESSAGE {
            message = lossy(field.bytes());
        }
        Ok::<(), WireError>(())
    });
    if read.is_ok() { message } else { String::new() }
}

fn lossy(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_export_response(&data);
            let _ = parse_status(&data);
        }
    }
}
