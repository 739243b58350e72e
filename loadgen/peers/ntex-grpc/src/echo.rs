// Generated from proto/echo/v1/echo.proto by ntex-grpc-codegen 1.0.0, which needs protoc, then formatted:
//   ntex-grpc echo/v1/echo.proto echo.rs --out-dir src --include-dir ../../../proto
#![allow(
    dead_code,
    unused_mut,
    unused_variables,
    clippy::identity_op,
    clippy::too_many_lines,
    clippy::derivable_impls,
    clippy::unit_arg,
    clippy::derive_partial_eq_without_eq,
    clippy::manual_range_patterns,
    clippy::default_trait_access,
    clippy::semicolon_if_nothing_returned,
    clippy::doc_markdown,
    clippy::wildcard_imports
)]
//! DO NOT MODIFY. Auto-generated file

#[derive(Clone, PartialEq, Debug)]
pub struct EchoMessage {
    ///  Opaque bytes, set by the client and returned by the server; any length up to the server's
    ///  message limit (4 MiB unless configured) less the encoding of this field (at most 5 bytes there).
    pub payload: ::ntex_grpc::Bytes,
}

/// `Echo` service definition
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoMethods {
    Bidi(EchoBidiMethod),
}

#[derive(Debug, Clone)]
pub struct EchoClient<T>(T);

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct EchoBidiMethod;

impl ::ntex_grpc::MethodDef for EchoBidiMethod {
    const NAME: &'static str = "Bidi";
    const PATH: ::ntex_grpc::ByteString =
        ::ntex_grpc::ByteString::from_static("/echo.v1.Echo/Bidi");
    type Input = EchoMessage;
    type Output = EchoMessage;
    const CLIENT_STREAMING: bool = true;
    const SERVER_STREAMING: bool = true;
}

mod _priv_impl_echo_v1_echo {
    use super::*;

    impl ::ntex_grpc::Message for EchoMessage {
        #[inline]
        fn write(&self, dst: &mut ::ntex_grpc::BytePages) {
            ::ntex_grpc::NativeType::serialize(
                &self.payload,
                1,
                ::ntex_grpc::types::DefaultValue::Default,
                dst,
            );
        }

        #[inline]
        fn read(
            src: &mut ::ntex_grpc::Bytes,
        ) -> ::std::result::Result<Self, ::ntex_grpc::DecodeError> {
            let mut msg = Self::default();
            ::ntex_grpc::Message::merge_from(&mut msg, src)?;
            Ok(msg)
        }

        #[inline]
        fn merge_from(
            &mut self,
            src: &mut ::ntex_grpc::Bytes,
        ) -> ::std::result::Result<(), ::ntex_grpc::DecodeError> {
            const STRUCT_NAME: &str = "EchoMessage";
            while !src.is_empty() {
                let (tag, wire_type) = ::ntex_grpc::encoding::decode_key(src)?;
                match tag {
                    1 => {
                        ::ntex_grpc::NativeType::deserialize(&mut self.payload, tag, wire_type, src)
                            .map_err(|err| err.push(STRUCT_NAME, "payload"))?
                    }
                    _ => ::ntex_grpc::encoding::skip_field(wire_type, tag, src)?,
                }
            }
            Ok(())
        }

        #[inline]
        fn encoded_len(&self) -> usize {
            0 + ::ntex_grpc::NativeType::serialized_len(
                &self.payload,
                1,
                ::ntex_grpc::types::DefaultValue::Default,
            )
        }
    }

    impl ::std::default::Default for EchoMessage {
        #[inline]
        fn default() -> Self {
            Self { payload: ::core::default::Default::default() }
        }
    }

    impl ::ntex_grpc::ServiceDef for Echo {
        const NAME: &'static str = "echo.v1.Echo";
        type Methods = EchoMethods;

        #[inline]
        fn method_by_name(name: &str) -> Option<Self::Methods> {
            use ::ntex_grpc::MethodDef;
            match name {
                EchoBidiMethod::NAME => Some(EchoMethods::Bidi(EchoBidiMethod)),
                _ => None,
            }
        }
    }

    impl<T> EchoClient<T> {
        #[inline]
        /// Create new client instance
        pub fn new(transport: T) -> Self {
            Self(transport)
        }
    }

    impl<T> ::ntex_grpc::client::ClientInformation<T> for EchoClient<T> {
        #[inline]
        /// Create new client instance
        fn create(transport: T) -> Self {
            Self(transport)
        }

        #[inline]
        /// Get referece to underlying transport
        fn transport(&self) -> &T {
            &self.0
        }

        #[inline]
        /// Get mut referece to underlying transport
        fn transport_mut(&mut self) -> &mut T {
            &mut self.0
        }

        #[inline]
        /// Consume client and return inner transport
        fn into_inner(self) -> T {
            self.0
        }
    }

    impl<T> EchoClient<T> {
        ///  Sends each message back unchanged and in order, as soon as it was read.
        ///  The call ends with OK when the client half-closes.
        pub fn bidi(
            &self,
        ) -> ::ntex_grpc::client::StreamRequest<'_, T, EchoBidiMethod, ::ntex_grpc::client::Bidi>
        {
            ::ntex_grpc::client::StreamRequest::bidi(&self.0)
        }
    }
}
