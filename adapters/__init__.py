"""The world: Redis, MongoDB, AWS, FCM. Synchronous; one file per port_technology; SDKs are imported inside the function that needs them."""
