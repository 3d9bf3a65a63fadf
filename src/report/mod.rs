//! Views of results for people: pages, pictures and tables as bytes. Nothing here measures anything or writes a file.

pub mod csv;
pub mod markdown;
pub mod npz;
