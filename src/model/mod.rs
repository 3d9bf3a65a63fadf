//! What a model is made of: its architecture, the roles of its tensors, and which tensors read which activation.
//!
//! Everything here is read off names, shapes and metadata; no weight is touched.

pub mod arch;
pub mod function;
pub mod groups;
pub mod mappings;
pub mod name;

pub use arch::{Arch, Heads};
pub use function::Function;
pub use groups::{Axis, InputGroup, Producer, Shape, Span, groups};
pub use mappings::Family;
pub use name::{Kind, Role, TensorName};
