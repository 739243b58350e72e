//! The generated code of both contracts: the only door to it.
//!
//! In: what the build script compiled from `proto/`. Out: messages, clients, servers and the
//! descriptor set that reflection serves.

/// The seed contract, `Chat/chat`, which has no package.
pub mod chat {
    #![allow(missing_docs, reason = "generated from proto/, where the fields are documented")]
    #![allow(non_camel_case_types, reason = "the seed's method is called `chat`, in lower case")]
    tonic::include_proto!("_");
}

/// The benchmark contract, `echo.v1.Echo/Bidi`.
pub mod echo {
    #![allow(missing_docs, reason = "generated from proto/, where the fields are documented")]
    tonic::include_proto!("echo.v1");
}

/// Encoded `FileDescriptorSet` of both contracts and what they import.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
