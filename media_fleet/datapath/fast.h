// What Python and C say to each other. Read twice: by fast.c, and by cffi (compiled.py), which knows no preprocessor; so no includes and no guards here.
// Whoever changes a line here raises FAST_ABI, and a library that was built before is refused.
#define FAST_ABI 2

struct fast_path;  // the thread and all its tables

struct fast_address {
    uint8_t ip[16];  // IPv4 in the first four, the rest zero
    uint32_t scope;  // of a link-local IPv6 address, else zero
    uint16_t port;   // in host order
    uint16_t family; // 4 or 6
};

struct fast_counters { // of one relay; payload bytes and datagrams that were forwarded. Owned by Python, written by the thread until fast_close
    uint64_t from_client_bytes, to_client_bytes, from_client_packets, to_client_packets;
    uint64_t dropped_packets;
    uint64_t handle; // names the relay in the calls below; set by fast_open
};

struct fast_bucket { // a token bucket. Owned by Python, which keeps it as long as a relay that was opened with it
    double bytes_per_s, burst_bytes, tokens, filled_at;
};

struct fast_stats { // datagrams since the start
    uint64_t datagrams_in, datagrams_out, upcalls;
    uint64_t dropped_malformed;     // neither STUN nor ChannelData, shorter than it says, or too long for one ChannelData
    uint64_t dropped_no_allocation; // none of this client, or its lifetime is over
    uint64_t dropped_no_channel;
    uint64_t dropped_no_permission;
    uint64_t dropped_over_rate;
    uint64_t dropped_send_failed; // a full send buffer, no route
    uint64_t dropped_ring_full;
    uint64_t rounds, pauses; // of the thread's loop
};

#define FAST_FROM_CLIENT 1
#define FAST_FROM_PEER 2
#define FAST_ICMP 3

struct fast_icmp { // the data of that kind; its source is the peer that was not reached
    uint8_t type, code;
    uint32_t info; // an MTU where the type has one
};

struct fast_upcall { // a datagram that Python must look at
    const uint8_t *data; // valid until the next fast_next
    uint32_t length;
    uint32_t kind;
    int64_t id;      // of the listener, or of the relay
    uint64_t handle; // of the relay: an id may have been given to another one meanwhile
    struct fast_address source;
};

// Functions that return int give 0 or a negative errno. Times are CLOCK_BOOTTIME in seconds.
int fast_abi(void);
struct fast_path *fast_start(uint32_t ring_bytes, uint32_t pause_us); // NULL and errno
void fast_stop(struct fast_path *path);
int fast_fileno(const struct fast_path *path);
int fast_listen(struct fast_path *path, int64_t listener_id, int fd);
int fast_unlisten(struct fast_path *path, int64_t listener_id);
int fast_open(struct fast_path *path, int64_t relay_id, int fd, int64_t listener_id, const struct fast_address *client, const struct fast_address *relayed,
              double expires_at, struct fast_bucket *bucket, struct fast_counters *counters);
int fast_extend(struct fast_path *path, uint64_t handle, double expires_at);
int fast_permit(struct fast_path *path, uint64_t handle, const struct fast_address *host, double expires_at);
// is_own: the peer is a relayed address of this server. Where no relay with that address is open here, the datagram leaves by the socket if it may, else goes up.
int fast_bind(struct fast_path *path, uint64_t handle, uint16_t number, const struct fast_address *peer, int is_own, int may_leave, double expires_at);
int fast_close(struct fast_path *path, uint64_t handle);
int fast_bucket(struct fast_path *path, struct fast_bucket *bucket, double bytes_per_s, double burst_bytes);
int fast_spend(struct fast_path *path, uint64_t handle, uint32_t bytes, int is_from_client); // 1, or 0 when the bucket does not hold so much
int fast_next(struct fast_path *path, struct fast_upcall *upcall); // 1, or 0 when there is none
void fast_stats(struct fast_path *path, struct fast_stats *stats);
