//! Attributes to be set on the rows of a batch: one value for all rows, or one (or none) for each, already encoded.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef};
use arrow_cast::cast;
use arrow_schema::DataType;

use crate::error::{CoreError, ErrorKind};
use crate::otlp::fields::{any_value, list};
use crate::otlp::value::{MAX_DEPTH, Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{put_bytes, put_message};

/// The values of an attribute; each is an encoded `AnyValue`.
#[derive(Clone, Debug)]
pub enum Values {
    /// The same for every row.
    One(Vec<u8>),
    /// One for each row, absent where the array had null.
    Each(Vec<Option<Vec<u8>>>),
}

/// An attribute with its values.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// The key.
    pub key: Vec<u8>,
    /// The values.
    pub values: Values,
}

impl Attribute {
    /// The value of a row.
    pub fn value(&self, row: usize) -> Option<&[u8]> {
        match &self.values {
            Values::One(value) => Some(value),
            Values::Each(values) => values.get(row)?.as_deref(),
        }
    }
}

impl Values {
    /// One scalar for every row.
    pub fn scalar(scalar: Scalar<'_>) -> Self {
        let mut value = Vec::new();
        put_scalar(&mut value, scalar);
        Self::One(value)
    }

    /// A value for each row out of an Arrow array: integers, floats, bools, strings and bytes stay what they are, lists and structs
    /// become arrays and maps, anything else (times, decimals) the text that Arrow gives it.
    pub fn of_array(array: &ArrayRef) -> Result<Self, CoreError> {
        let reader = ColumnReader::new(array, MAX_DEPTH)?;
        Ok(Self::Each((0..array.len()).map(|row| reader.value(row)).collect()))
    }
}

/// An Arrow array of one of the kinds that OTLP has.
enum ColumnReader {
    Null,
    Bool(ArrayRef),
    Int(ArrayRef),
    Double(ArrayRef),
    String(ArrayRef),
    Bytes(ArrayRef),
    List(ArrayRef, Box<Self>),
    Struct(ArrayRef, Vec<(String, Self)>),
}

impl ColumnReader {
    fn new(array: &ArrayRef, depth: usize) -> Result<Self, CoreError> {
        let as_type = |data_type: DataType| {
            cast(array, &data_type)
                .map_err(|error| CoreError::new(ErrorKind::ConfigInvalid, 0, format!("a column cannot be used: {error}")))
        };
        if depth == 0 {
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, "a column is nested too deep"));
        }
        Ok(match array.data_type() {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool(array.clone()),
            data_type if data_type.is_integer() => Self::Int(as_type(DataType::Int64)?),
            data_type if data_type.is_floating() => Self::Double(as_type(DataType::Float64)?),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Self::Bytes(as_type(DataType::LargeBinary)?)
            }
            DataType::Dictionary(_, values) => Self::new(&as_type((**values).clone())?, depth - 1)?,
            DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
                let array = as_type(DataType::LargeList(field.clone()))?;
                let elements = Self::new(array.as_list::<i64>().values(), depth - 1)?;
                Self::List(array, Box::new(elements))
            }
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns();
                let named = fields.iter().zip(columns).map(|(field, column)| Ok((field.name().clone(), Self::new(column, depth - 1)?)));
                Self::Struct(array.clone(), named.collect::<Result<_, CoreError>>()?)
            }
            _ => Self::String(as_type(DataType::LargeUtf8)?),
        })
    }

    fn value(&self, row: usize) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.put(&mut out, row).then_some(out)
    }

    /// Appends the `AnyValue` of a row; false, and nothing, for null.
    fn put(&self, out: &mut Vec<u8>, row: usize) -> bool {
        let array = match self {
            Self::Null => return false,
            Self::Bool(array) | Self::Int(array) | Self::Double(array) | Self::String(array) | Self::Bytes(array) => array,
            Self::List(array, _) | Self::Struct(array, _) => array,
        };
        if array.is_null(row) {
            return false;
        }
        match self {
            Self::Null => {}
            Self::Bool(array) => put_scalar(out, Scalar::Bool(array.as_boolean().value(row))),
            Self::Int(array) => put_scalar(out, Scalar::Int(array.as_primitive::<Int64Type>().value(row))),
            Self::Double(array) => put_scalar(out, Scalar::Double(array.as_primitive::<Float64Type>().value(row))),
            Self::String(array) => put_scalar(out, Scalar::String(array.as_string::<i64>().value(row).as_bytes())),
            Self::Bytes(array) => put_scalar(out, Scalar::Bytes(array.as_binary::<i64>().value(row))),
            Self::List(array, elements) => {
                let offsets = array.as_list::<i64>().value_offsets();
                put_message(out, any_value::ARRAY, |out| {
                    for element in offsets[row]..offsets[row + 1] {
                        // A null element is an empty value: its place in the list must stay.
                        put_bytes(out, list::VALUES, &elements.value(element as usize).unwrap_or_default());
                    }
                });
            }
            Self::Struct(_, columns) => put_message(out, any_value::KVLIST, |out| {
                for (key, column) in columns {
                    if let Some(value) = column.value(row) {
                        put_key_value(out, list::VALUES, key.as_bytes(), &value);
                    }
                }
            }),
        }
        true
    }
}
