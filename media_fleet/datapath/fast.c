// The compiled data path of the TURN relay (RFC 8656 s11.3, s12.5 to s12.7): one thread that reads every UDP listener and relay socket, forwards ChannelData and
// the datagrams of peers that have a channel, and hands the rest to Python, which opens, permits, binds and closes. Linux.
//
// Two threads meet here: Python's, in the functions of fast.h, and ours. The tables belong to whoever is inside (see enter); ours goes out between two batches and
// is outside while it waits. The ring of upcalls has one writer and one reader and needs no lock. Expiry is a comparison with the clock for each batch received.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <linux/errqueue.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "fast.h"

enum {
    BATCH = 64,              // datagrams between two moments at which Python may come inside
    LISTENER_BATCHES = 4,    // of one listener before the other sockets get their turn
    RELAY_BATCH = 16,        // datagrams of one relay socket before the others get their turn
    EVENTS = 256,            // sockets per epoll_wait
    LISTENERS = 64,          // addresses and ports of one process
    MOST_PER_RELAY = 1024,   // permissions, channels; the core allows fewer
    HEADER = 4,              // of ChannelData
    LARGEST = 65535,         // a datagram
    LARGEST_PAYLOAD = 65400, // with its header it still is one UDP datagram; the same as in media_fleet.turn.server
    STRIDE = 67 * 1024,      // from buffer to buffer: a power of two would crowd all of them into one set of the cache
    GSO_SEGMENT = 1232,      // a segment that IPv6's smallest MTU carries
    GSO_BYTES = 65000,       // of one send
    WORTH_A_PAUSE = 4,       // datagrams that a pause is likely to collect
};
#define LISTENER_EVENT (UINT64_C(1) << 63)
#define WAKE_EVENT UINT64_MAX
#define NOTHING UINT32_MAX

struct permission {
    uint8_t ip[16];
    double expires_at;
};

struct channel {
    struct fast_address peer;
    double expires_at;
    uint16_t number;
    uint8_t is_own, may_leave; // see fast_bind
};

struct relay {
    uint64_t handle; // generation << 32 | slot
    int64_t id;
    double expires_at;
    struct fast_counters *counters;
    struct fast_bucket *bucket; // or NULL
    struct relay *next_of_client, *next_of_relayed;
    struct permission *permissions;
    struct channel *channels;
    struct fast_address client, relayed;
    int fd, listener;
    uint16_t permissions_used, permissions_room, channels_used, channels_room;
};

struct listener {
    int64_t id;
    int fd;       // -1: read no more
    int relays;   // whose clients are answered by it
    int is_taken;
};

union socket_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

struct outgoing {
    struct relay *relay; // that counts it
    int fd;
    int is_from_client;
};

struct record { // in the ring; the data follow
    uint32_t size;   // of all of it, in steps of 8
    uint32_t length; // of the data; NOTHING: go on where the ring begins
    uint64_t kind;
    int64_t id;
    uint64_t handle;
    struct fast_address source;
};

struct fast_path {
    pthread_mutex_t queue, tables; // see enter
    pthread_t thread;
    atomic_int is_stopping;
    int epoll, wake, upcalls;
    uint32_t pause_us;
    uint64_t seed[2];

    struct relay **slots; // by the lower half of a handle; the upper half says whether it is still the same relay
    uint32_t *free_slots;
    uint32_t slots_room, slots_used, slots_free, generation;
    struct relay **by_client, **by_relayed; // chained hash tables of one size, a power of two
    uint32_t hash_room, relays;
    struct listener listeners[LISTENERS];
    struct fast_stats stats;

    uint8_t *buffers;
    struct mmsghdr in[BATCH];
    struct iovec in_data[BATCH];
    union socket_address from[BATCH];
    struct outgoing out[BATCH];
    struct iovec out_data[BATCH];
    union socket_address to[BATCH];
    int in_used, out_used;
    int is_without_gso;

    uint8_t *ring;
    uint64_t ring_room;    // a power of two
    _Atomic uint64_t head; // bytes ever written
    _Atomic uint64_t tail; // bytes ever read
    uint64_t held;         // of the record that Python looks at
    int has_upcalls;       // that the bell has not told of
};

static const uint8_t MAGIC_COOKIE[4] = {0x21, 0x12, 0xa4, 0x42}; // RFC 8489 s5

// Who is inside. Under a mutex alone our thread could come in again before Python has woken up, every time; who holds the queue's head comes next.

static void enter(struct fast_path *path) {
    pthread_mutex_lock(&path->queue);
    pthread_mutex_lock(&path->tables);
    pthread_mutex_unlock(&path->queue);
}

static void leave(struct fast_path *path) { pthread_mutex_unlock(&path->tables); }

static double now_s(void) {
    struct timespec at;
    clock_gettime(CLOCK_BOOTTIME, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

// Python reads these at any moment.
static void add(uint64_t *counter, uint64_t amount) { __atomic_store_n(counter, *counter + amount, __ATOMIC_RELAXED); }

// Addresses

static int is_same(const struct fast_address *one, const struct fast_address *other) { return memcmp(one, other, sizeof *one) == 0; }

static struct fast_address address_of(const union socket_address *from) {
    struct fast_address address = {0};
    if (from->any.sa_family == AF_INET) {
        address.family = 4;
        address.port = ntohs(from->v4.sin_port);
        memcpy(address.ip, &from->v4.sin_addr, 4);
    } else {
        address.family = 6;
        address.port = ntohs(from->v6.sin6_port);
        address.scope = from->v6.sin6_scope_id;
        memcpy(address.ip, &from->v6.sin6_addr, 16);
    }
    return address;
}

static union socket_address socket_address_of(const struct fast_address *address) {
    union socket_address to = {.v6 = {0}};
    if (address->family == 4) {
        to.v4.sin_family = AF_INET;
        to.v4.sin_port = htons(address->port);
        memcpy(&to.v4.sin_addr, address->ip, 4);
    } else {
        to.v6.sin6_family = AF_INET6;
        to.v6.sin6_port = htons(address->port);
        to.v6.sin6_scope_id = address->scope;
        memcpy(&to.v6.sin6_addr, address->ip, 16);
    }
    return to;
}

static socklen_t length_of(const union socket_address *address) { return address->any.sa_family == AF_INET ? sizeof address->v4 : sizeof address->v6; }

// Keyed by a secret: clients choose their ports, and must not be able to put them all into one chain.
static uint32_t hash(const struct fast_path *path, const struct fast_address *address, uint64_t salt) {
    uint64_t words[3], mixed = path->seed[0] ^ salt;
    _Static_assert(sizeof words == sizeof *address, "an address has no padding");
    memcpy(words, address, sizeof words);
    for (int at = 0; at < 3; at++) {
        mixed = (mixed ^ words[at]) * 0xbf58476d1ce4e5b9ull;
        mixed = (mixed ^ mixed >> 29 ^ path->seed[1]) * 0x94d049bb133111ebull;
        mixed ^= mixed >> 32;
    }
    return (uint32_t)mixed & (path->hash_room - 1);
}

static struct relay **chain_of_client(const struct fast_path *path, const struct fast_address *client, int listener) {
    return &path->by_client[hash(path, client, (uint64_t)listener + 1)];
}

static struct relay **chain_of_relayed(const struct fast_path *path, const struct fast_address *relayed) { return &path->by_relayed[hash(path, relayed, 0)]; }

// What a relay knows

static struct relay *relay_of(const struct fast_path *path, uint64_t handle) {
    uint32_t slot = (uint32_t)handle;
    struct relay *relay = slot < path->slots_used ? path->slots[slot] : NULL;
    return relay && relay->handle == handle ? relay : NULL;
}

static int is_permitted(const struct relay *relay, const struct fast_address *peer, double now) { // s9: by IP address only
    for (int at = 0; at < relay->permissions_used; at++)
        if (memcmp(relay->permissions[at].ip, peer->ip, sizeof peer->ip) == 0) return relay->permissions[at].expires_at > now;
    return 0;
}

static const struct channel *channel_of_number(const struct relay *relay, uint16_t number, double now) {
    for (int at = 0; at < relay->channels_used; at++)
        if (relay->channels[at].number == number) return relay->channels[at].expires_at > now ? &relay->channels[at] : NULL;
    return NULL;
}

static const struct channel *channel_of_peer(const struct relay *relay, const struct fast_address *peer, double now) {
    for (int at = 0; at < relay->channels_used; at++)
        if (is_same(&relay->channels[at].peer, peer)) return relay->channels[at].expires_at > now ? &relay->channels[at] : NULL;
    return NULL;
}

static void fill(struct fast_bucket *bucket, double now) {
    if (!(now > bucket->filled_at)) return;
    bucket->tokens += (now - bucket->filled_at) * bucket->bytes_per_s;
    if (bucket->tokens > bucket->burst_bytes) bucket->tokens = bucket->burst_bytes;
    bucket->filled_at = now;
}

static int holds(struct fast_bucket *bucket, uint32_t bytes, double now) {
    if (!bucket) return 1;
    fill(bucket, now);
    return bucket->tokens >= (double)bytes;
}

static void count(struct relay *relay, int is_from_client, uint64_t bytes) {
    struct fast_counters *counters = relay->counters;
    add(is_from_client ? &counters->from_client_bytes : &counters->to_client_bytes, bytes);
    add(is_from_client ? &counters->from_client_packets : &counters->to_client_packets, 1);
}

static void drop(struct relay *relay, uint64_t *reason) {
    add(&relay->counters->dropped_packets, 1);
    ++*reason;
}

static int spend(struct fast_path *path, struct relay *relay, uint32_t bytes, double now) {
    if (!holds(relay->bucket, bytes, now)) {
        drop(relay, &path->stats.dropped_over_rate);
        return 0;
    }
    if (relay->bucket) relay->bucket->tokens -= (double)bytes;
    return 1;
}

// Upcalls. The ring never grows: what does not fit is lost, as UDP may lose it.

static void hand_up(struct fast_path *path, uint64_t kind, int64_t id, uint64_t handle, const struct fast_address *source, const uint8_t *data, uint32_t length) {
    uint64_t head = atomic_load_explicit(&path->head, memory_order_relaxed), tail = atomic_load_explicit(&path->tail, memory_order_acquire);
    uint64_t size = (sizeof(struct record) + length + 7) & ~7ull, at = head & (path->ring_room - 1);
    uint64_t skipped = at + size > path->ring_room ? path->ring_room - at : 0;
    uint64_t most = kind != FAST_FROM_CLIENT ? path->ring_room / 2 : path->ring_room; // peers without a channel leave room for requests
    if (head - tail + skipped + size > most) {
        path->stats.dropped_ring_full++;
        return;
    }
    if (skipped) {
        memcpy(path->ring + at, (uint32_t[]){(uint32_t)skipped, NOTHING}, 8);
        at = 0;
    }
    struct record record = {.size = (uint32_t)size, .length = length, .kind = kind, .id = id, .handle = handle, .source = *source};
    memcpy(path->ring + at, &record, sizeof record);
    memcpy(path->ring + at + sizeof record, data, length);
    atomic_store_explicit(&path->head, head + skipped + size, memory_order_release);
    path->stats.upcalls++;
    path->has_upcalls = 1;
}

static void ring_the_bell(struct fast_path *path) {
    if (path->has_upcalls) eventfd_write(path->upcalls, 1); // where it fails it is full, and rings already
    path->has_upcalls = 0;
}

// Sending. Datagrams wait until their batch is over: those of one socket leave by one call, and those of one size to one address as one datagram, which the kernel
// cuts (UDP GSO).

static void tell_sent(struct fast_path *path, int at, int is_sent) {
    const struct outgoing *out = &path->out[at];
    if (!is_sent) {
        drop(out->relay, &path->stats.dropped_send_failed);
        return;
    }
    count(out->relay, out->is_from_client, path->out_data[at].iov_len - (out->is_from_client ? 0 : HEADER));
    path->stats.datagrams_out++;
}

static void send_alone(struct fast_path *path, int at) {
    const struct iovec *data = &path->out_data[at];
    const union socket_address *to = &path->to[at];
    ssize_t sent = -1;
    for (int tries = 0; sent < 0 && tries < 2 && (tries == 0 || errno != EAGAIN); tries++) // the first error may be that of an earlier datagram (udp(7))
        sent = sendto(path->out[at].fd, data->iov_base, data->iov_len, MSG_DONTWAIT, &to->any, length_of(to));
    tell_sent(path, at, sent >= 0);
}

// Where the run ends that can leave as one: the same address and size, only the last one may be shorter.
static int end_of_run(const struct fast_path *path, int first, int end) {
    size_t size = path->out_data[first].iov_len, total = size;
    if (path->is_without_gso || size == 0 || size > GSO_SEGMENT) return first + 1;
    int at = first + 1;
    while (at < end) {
        size_t next = path->out_data[at].iov_len;
        if (next == 0 || next > size || total + next > GSO_BYTES || memcmp(&path->to[at], &path->to[first], sizeof path->to[at]) != 0) break;
        at++;
        total += next;
        if (next < size) break;
    }
    return at;
}

static void send_together(struct fast_path *path, int first, int end) {
    struct mmsghdr messages[BATCH];
    _Alignas(struct cmsghdr) char control[BATCH][CMSG_SPACE(sizeof(uint16_t))];
    int starts[BATCH + 1], used = 0;
    for (int at = first; at < end;) {
        int next = end_of_run(path, at, end);
        struct msghdr *header = &messages[used].msg_hdr;
        *header = (struct msghdr){.msg_name = &path->to[at], .msg_namelen = length_of(&path->to[at]), .msg_iov = &path->out_data[at]};
        header->msg_iovlen = (size_t)(next - at);
        if (next - at > 1) {
            uint16_t size = (uint16_t)path->out_data[at].iov_len;
            header->msg_control = control[used];
            header->msg_controllen = sizeof control[used];
            struct cmsghdr *segment = CMSG_FIRSTHDR(header);
            segment->cmsg_level = SOL_UDP;
            segment->cmsg_type = UDP_SEGMENT;
            segment->cmsg_len = CMSG_LEN(sizeof size);
            memcpy(CMSG_DATA(segment), &size, sizeof size);
        }
        starts[used++] = at;
        at = next;
    }
    starts[used] = end;
    for (int done = 0; done < used;) {
        int result = sendmmsg(path->out[first].fd, messages + done, (unsigned)(used - done), MSG_DONTWAIT);
        int is_sent = result > 0, next = done + (is_sent ? result : 1);
        if (is_sent) {
            for (int at = starts[done]; at < starts[next]; at++) tell_sent(path, at, 1);
        } else { // a device without checksum offload (EIO), a path that is too narrow for a segment, or the error of an earlier datagram
            path->is_without_gso |= errno == EIO;
            for (int at = starts[done]; at < starts[next]; at++) send_alone(path, at);
        }
        done = next;
    }
}

static void flush(struct fast_path *path) {
    for (int first = 0, end; first < path->out_used; first = end) {
        end = first + 1;
        while (end < path->out_used && path->out[end].fd == path->out[first].fd) end++;
        if (end - first == 1)
            send_alone(path, first);
        else
            send_together(path, first, end);
    }
    path->in_used = path->out_used = 0;
}

// There is room: a datagram received becomes one that is sent at most.
static void send_later(struct fast_path *path, struct relay *relay, int is_from_client, const struct fast_address *to, uint8_t *data, size_t length) {
    int at = path->out_used++;
    path->out[at] = (struct outgoing){relay, is_from_client ? relay->fd : path->listeners[relay->listener].fd, is_from_client};
    path->out_data[at] = (struct iovec){data, length};
    path->to[at] = socket_address_of(to);
}

// The rules

// A datagram at a relayed address (s11.3, s12.7). The HEADER bytes before `data` are overwritten.
static void from_peer(struct fast_path *path, struct relay *relay, const struct fast_address *peer, uint8_t *data, uint32_t length, double now) {
    const struct channel *channel = channel_of_peer(relay, peer, now);
    if (!(relay->expires_at > now)) {
        drop(relay, &path->stats.dropped_no_allocation);
    } else if (!is_permitted(relay, peer, now)) {
        drop(relay, &path->stats.dropped_no_permission);
    } else if (length > LARGEST_PAYLOAD) {
        drop(relay, &path->stats.dropped_malformed);
    } else if (channel) {
        if (!spend(path, relay, length, now)) return;
        uint8_t *datagram = data - HEADER;
        datagram[0] = (uint8_t)(channel->number >> 8);
        datagram[1] = (uint8_t)channel->number;
        datagram[2] = (uint8_t)(length >> 8);
        datagram[3] = (uint8_t)length;
        send_later(path, relay, 0, &relay->client, datagram, length + HEADER);
    } else if (holds(relay->bucket, length, now)) { // becomes a Data indication, which is Python's
        hand_up(path, FAST_FROM_PEER, relay->id, relay->handle, peer, data, length);
    } else {
        drop(relay, &path->stats.dropped_over_rate);
    }
}

// ChannelData to a relayed address of ours: as if it left by one relay socket and arrived at the other. Whether the other one is known here.
static int to_own(struct fast_path *path, struct relay *relay, const struct channel *channel, uint8_t *data, uint32_t length, double now) {
    struct relay *target = *chain_of_relayed(path, &channel->peer);
    while (target && !is_same(&target->relayed, &channel->peer)) target = target->next_of_relayed;
    if (!target) return 0;
    if (spend(path, relay, length, now)) {
        count(relay, 1, length);
        from_peer(path, target, &relay->relayed, data, length, now);
    }
    return 1;
}

static int is_stun(const uint8_t *data, uint32_t length) { // RFC 8489 s5: two zero bits, the length, the cookie
    if (length < 20 || length % 4 || data[0] > 0x3f) return 0;
    return (uint32_t)(data[2] << 8 | data[3]) == length - 20 && memcmp(data + 4, MAGIC_COOKIE, sizeof MAGIC_COOKIE) == 0;
}

static void from_client(struct fast_path *path, int listener, const struct fast_address *client, uint8_t *data, uint32_t length, double now) {
    int64_t id = path->listeners[listener].id;
    if (is_stun(data, length)) {
        hand_up(path, FAST_FROM_CLIENT, id, 0, client, data, length);
        return;
    }
    uint32_t payload = length < HEADER ? 0 : (uint32_t)(data[2] << 8 | data[3]);
    if (length < HEADER || data[0] < 0x40 || data[0] > 0x4f || payload > length - HEADER) { // s12.5: padding may follow, and is ignored
        path->stats.dropped_malformed++;
        return;
    }
    uint16_t number = (uint16_t)(data[0] << 8 | data[1]);
    struct relay *living = NULL; // a client has two where it asked for both families; the channel is one of them only
    for (struct relay *relay = *chain_of_client(path, client, listener); relay; relay = relay->next_of_client) {
        if (relay->listener != listener || !is_same(&relay->client, client) || !(relay->expires_at > now)) continue;
        living = relay;
        const struct channel *channel = channel_of_number(relay, number, now);
        if (!channel) continue;
        if (channel->is_own && to_own(path, relay, channel, data + HEADER, payload, now)) return;
        if (channel->is_own && !channel->may_leave)
            hand_up(path, FAST_FROM_CLIENT, id, 0, client, data, length);
        else if (spend(path, relay, payload, now))
            send_later(path, relay, 1, &channel->peer, data + HEADER, payload);
        return;
    }
    if (living)
        drop(living, &path->stats.dropped_no_channel);
    else
        path->stats.dropped_no_allocation++;
}

// Receiving

static uint8_t *buffer(const struct fast_path *path, int at) { return path->buffers + (size_t)at * STRIDE + HEADER; }

static int receive(struct fast_path *path, int fd, int most) {
    struct mmsghdr *in = path->in + path->in_used;
    for (int at = 0; at < most; at++) in[at].msg_hdr.msg_namelen = sizeof path->from[0];
    int received = recvmmsg(fd, in, (unsigned)most, MSG_DONTWAIT, NULL);
    if (received < 0) return 0; // nothing there; or an ICMP error, and reading it has cleared it
    path->stats.datagrams_in += (uint64_t)received;
    return received;
}

// One batch, which takes all buffers. Whether there may be more.
static int read_listener(struct fast_path *path, int listener) {
    if (path->in_used) flush(path);
    if (path->listeners[listener].fd < 0) return 0;
    int received = receive(path, path->listeners[listener].fd, BATCH);
    double now = now_s();
    for (int at = 0; at < received; at++) {
        struct fast_address client = address_of(&path->from[at]);
        from_client(path, listener, &client, buffer(path, at), path->in[at].msg_len, now);
    }
    path->in_used = received;
    return received == BATCH;
}

static void read_relay(struct fast_path *path, struct relay *relay) {
    int first = path->in_used, received = receive(path, relay->fd, RELAY_BATCH);
    double now = now_s();
    path->in_used += received;
    for (int at = first; at < path->in_used; at++) {
        struct fast_address peer = address_of(&path->from[at]);
        from_peer(path, relay, &peer, buffer(path, at), path->in[at].msg_len, now);
    }
}

// ICMP that came back for datagrams to peers (s11.5): the socket's queue of errors, ip(7) IP_RECVERR. Whoever leaves it there is woken up for ever.
static void read_errors(struct fast_path *path, struct relay *relay) {
    for (int tries = 0; tries < BATCH; tries++) {
        union socket_address to = {.v6 = {0}};
        _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct sock_extended_err) + sizeof(struct sockaddr_in6)) + 64];
        struct msghdr header = {.msg_name = &to, .msg_namelen = sizeof to, .msg_control = control, .msg_controllen = sizeof control};
        if (recvmsg(relay->fd, &header, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return;
        for (struct cmsghdr *part = CMSG_FIRSTHDR(&header); part; part = CMSG_NXTHDR(&header, part)) {
            int is_error = (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_RECVERR) || (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_RECVERR);
            if (!is_error || part->cmsg_len < CMSG_LEN(sizeof(struct sock_extended_err))) continue;
            struct sock_extended_err error;
            memcpy(&error, CMSG_DATA(part), sizeof error);
            if (error.ee_origin != SO_EE_ORIGIN_ICMP && error.ee_origin != SO_EE_ORIGIN_ICMP6) continue;
            struct fast_icmp icmp = {.type = error.ee_type, .code = error.ee_code, .info = error.ee_info};
            struct fast_address peer = address_of(&to);
            if (is_permitted(relay, &peer, now_s())) hand_up(path, FAST_ICMP, relay->id, relay->handle, &peer, (uint8_t *)&icmp, sizeof icmp);
        }
    }
}

// The thread

static void let_python_in(struct fast_path *path) {
    flush(path);
    ring_the_bell(path);
    leave(path);
    enter(path);
}

// Where somebody has asked a socket for ICMP errors (IP_RECVERR), epoll tells of them until they are read.
static void discard_errors(int fd) {
    char nothing;
    for (int at = 0; at < BATCH && recv(fd, &nothing, sizeof nothing, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0; at++) continue;
}

// Reads what is ready. Whether there was more than it took.
static int read_all(struct fast_path *path, const struct epoll_event *events, int ready, int has_paused) {
    int has_more = ready == EVENTS;
    enter(path);
    for (int at = 0; at < ready; at++) {
        uint64_t what = events[at].data.u64;
        if (what == WAKE_EVENT) continue;
        int listener = what & LISTENER_EVENT ? (int)(what & ~LISTENER_EVENT) : -1, batches = 1;
        struct relay *relay = listener < 0 ? relay_of(path, what) : NULL;
        if (events[at].events & EPOLLERR && relay) read_errors(path, relay);
        if (events[at].events & EPOLLERR && listener >= 0) discard_errors(path->listeners[listener].fd);
        if (relay) read_relay(path, relay); // else it was closed after epoll_wait had named it
        while (listener >= 0 && read_listener(path, listener) && batches++ < LISTENER_BATCHES) let_python_in(path);
        has_more |= batches > LISTENER_BATCHES;
        if (path->in_used + RELAY_BATCH > BATCH) let_python_in(path);
    }
    flush(path);
    ring_the_bell(path);
    path->stats.rounds++;
    path->stats.pauses += (uint64_t)has_paused;
    leave(path);
    return has_more;
}

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

// A wake-up for each datagram costs more than its forwarding: where a pause will collect several, it is taken. At a low rate nobody waits.
static void *run(void *argument) {
    struct fast_path *path = argument;
    struct epoll_event events[EVENTS];
    const struct timespec pause = {.tv_nsec = (long)path->pause_us * 1000};
    uint64_t before = now_ns(), known = 0;
    int has_paused = 0;
    prctl(PR_SET_NAME, "turn-datapath");
    prctl(PR_SET_TIMERSLACK, 1000ul);
    while (!atomic_load_explicit(&path->is_stopping, memory_order_acquire)) {
        int ready = epoll_wait(path->epoll, events, EVENTS, -1);
        if (ready <= 0) continue;
        int has_more = read_all(path, events, ready, has_paused);
        uint64_t now = now_ns(), received = path->stats.datagrams_in - known; // nobody else writes these
        known = path->stats.datagrams_in;
        has_paused = path->pause_us && !has_more && received * path->pause_us * 1000u >= WORTH_A_PAUSE * (now - before);
        if (has_paused) nanosleep(&pause, NULL);
        before = now;
    }
    return NULL;
}

// Python's calls: the path

int fast_abi(void) { return FAST_ABI; }

static int watch(struct fast_path *path, int fd, uint64_t what) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = what};
    return epoll_ctl(path->epoll, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static void discard(struct fast_path *path) {
    for (uint32_t at = 0; at < path->slots_used; at++) {
        if (!path->slots[at]) continue;
        free(path->slots[at]->permissions);
        free(path->slots[at]->channels);
        free(path->slots[at]);
    }
    int fds[] = {path->epoll, path->wake, path->upcalls};
    for (int at = 0; at < 3; at++)
        if (fds[at] >= 0) close(fds[at]);
    if (path->buffers) munmap(path->buffers, (size_t)BATCH * STRIDE);
    if (path->ring) munmap(path->ring, path->ring_room);
    free(path->slots);
    free(path->free_slots);
    free(path->by_client);
    free(path->by_relayed);
    free(path);
}

static void *map(size_t bytes) { // pages appear as they are used
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mapped == MAP_FAILED ? NULL : mapped;
}

static int prepare(struct fast_path *path, uint32_t ring_bytes) {
    path->epoll = epoll_create1(EPOLL_CLOEXEC);
    path->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    path->upcalls = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (path->epoll < 0 || path->wake < 0 || path->upcalls < 0 || getrandom(path->seed, sizeof path->seed, 0) != sizeof path->seed) return -errno;
    path->ring_room = 4 * LARGEST; // the half that peers may fill takes the largest datagram
    while (path->ring_room < ring_bytes || path->ring_room & (path->ring_room - 1)) path->ring_room = (path->ring_room | (path->ring_room - 1)) + 1;
    path->hash_room = 256;
    path->buffers = map((size_t)BATCH * STRIDE);
    path->ring = map(path->ring_room);
    path->by_client = calloc(path->hash_room, sizeof *path->by_client);
    path->by_relayed = calloc(path->hash_room, sizeof *path->by_relayed);
    if (!path->buffers || !path->ring || !path->by_client || !path->by_relayed) return -ENOMEM;
    for (int at = 0; at < BATCH; at++) {
        path->in_data[at] = (struct iovec){buffer(path, at), LARGEST};
        path->in[at].msg_hdr = (struct msghdr){.msg_name = &path->from[at], .msg_iov = &path->in_data[at], .msg_iovlen = 1};
    }
    return watch(path, path->wake, WAKE_EVENT);
}

struct fast_path *fast_start(uint32_t ring_bytes, uint32_t pause_us) {
    struct fast_path *path = calloc(1, sizeof *path);
    if (!path) return NULL;
    pthread_mutex_init(&path->queue, NULL);
    pthread_mutex_init(&path->tables, NULL);
    path->pause_us = pause_us;
    int error = ring_bytes > 1u << 30 || pause_us > 100000 ? -EINVAL : prepare(path, ring_bytes);
    if (!error) { // signals are Python's
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = -pthread_create(&path->thread, NULL, run, path);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (!error) return path;
    discard(path);
    errno = -error;
    return NULL;
}

void fast_stop(struct fast_path *path) {
    atomic_store_explicit(&path->is_stopping, 1, memory_order_release);
    eventfd_write(path->wake, 1);
    pthread_join(path->thread, NULL);
    discard(path);
}

int fast_fileno(const struct fast_path *path) { return path->upcalls; }

void fast_stats(struct fast_path *path, struct fast_stats *stats) {
    enter(path);
    *stats = path->stats;
    leave(path);
}

int fast_next(struct fast_path *path, struct fast_upcall *upcall) {
    uint64_t tail = atomic_load_explicit(&path->tail, memory_order_relaxed) + path->held;
    path->held = 0;
    for (;;) {
        atomic_store_explicit(&path->tail, tail, memory_order_release);
        if (atomic_load_explicit(&path->head, memory_order_acquire) == tail) return 0;
        const uint8_t *at = path->ring + (tail & (path->ring_room - 1));
        uint32_t size, length;
        memcpy(&size, at, sizeof size);
        memcpy(&length, at + sizeof size, sizeof length);
        if (length == NOTHING) {
            tail += size;
            continue;
        }
        struct record record;
        memcpy(&record, at, sizeof record);
        path->held = size;
        *upcall = (struct fast_upcall){at + sizeof record, length, (uint32_t)record.kind, record.id, record.handle, record.source};
        return 1;
    }
}

// Python's calls: listeners

static int listener_of(const struct fast_path *path, int64_t listener_id) {
    for (int at = 0; at < LISTENERS; at++)
        if (path->listeners[at].fd >= 0 && path->listeners[at].is_taken && path->listeners[at].id == listener_id) return at;
    return -1;
}

static int start_listening(struct fast_path *path, int64_t listener_id, int fd) {
    if (listener_of(path, listener_id) >= 0) return -EEXIST;
    for (int at = 0; at < LISTENERS; at++) {
        if (path->listeners[at].is_taken) continue;
        int error = watch(path, fd, LISTENER_EVENT | (uint64_t)at);
        if (!error) path->listeners[at] = (struct listener){.id = listener_id, .fd = fd, .is_taken = 1};
        return error;
    }
    return -ENOSPC;
}

int fast_listen(struct fast_path *path, int64_t listener_id, int fd) {
    enter(path);
    int error = start_listening(path, listener_id, fd);
    leave(path);
    return error;
}

int fast_unlisten(struct fast_path *path, int64_t listener_id) {
    enter(path);
    int at = listener_of(path, listener_id);
    if (at >= 0) {
        struct listener *listener = &path->listeners[at];
        epoll_ctl(path->epoll, EPOLL_CTL_DEL, listener->fd, NULL);
        listener->fd = -1; // what its clients' relays send now fails
        listener->is_taken = listener->relays > 0;
    }
    leave(path);
    return at < 0 ? -ENOENT : 0;
}

// Python's calls: relays

static int grow_slots(struct fast_path *path) {
    uint32_t room = path->slots_room ? 2 * path->slots_room : 64;
    struct relay **slots = realloc(path->slots, room * sizeof *slots);
    if (!slots) return -ENOMEM;
    path->slots = slots;
    uint32_t *free_slots = realloc(path->free_slots, room * sizeof *free_slots);
    if (!free_slots) return -ENOMEM;
    path->free_slots = free_slots;
    path->slots_room = room;
    return 0;
}

static void put_into_tables(struct fast_path *path, struct relay *relay) {
    struct relay **client = chain_of_client(path, &relay->client, relay->listener), **relayed = chain_of_relayed(path, &relay->relayed);
    relay->next_of_client = *client;
    relay->next_of_relayed = *relayed;
    *client = *relayed = relay;
}

static int grow_tables(struct fast_path *path) {
    uint32_t room = 2 * path->hash_room;
    struct relay **by_client = calloc(room, sizeof *by_client), **by_relayed = calloc(room, sizeof *by_relayed);
    if (!by_client || !by_relayed) {
        free(by_client);
        free(by_relayed);
        return -ENOMEM;
    }
    free(path->by_client);
    free(path->by_relayed);
    path->by_client = by_client;
    path->by_relayed = by_relayed;
    path->hash_room = room;
    for (uint32_t at = 0; at < path->slots_used; at++)
        if (path->slots[at]) put_into_tables(path, path->slots[at]);
    return 0;
}

static int open_relay(struct fast_path *path, struct relay *relay) {
    int error = 0;
    if (relay->listener < 0) return -ENOENT;
    if (!path->slots_free && path->slots_used == path->slots_room) error = grow_slots(path);
    if (!error && path->relays == path->hash_room) error = grow_tables(path);
    if (error) return error;
    uint32_t slot = path->slots_free ? path->free_slots[path->slots_free - 1] : path->slots_used;
    path->generation = path->generation % INT32_MAX + 1; // below LISTENER_EVENT, and no handle is 0
    relay->handle = (uint64_t)path->generation << 32 | slot;
    if ((error = watch(path, relay->fd, relay->handle))) return error;
    if (path->slots_free)
        path->slots_free--;
    else
        path->slots_used++;
    path->slots[slot] = relay;
    path->relays++;
    path->listeners[relay->listener].relays++;
    relay->counters->handle = relay->handle;
    put_into_tables(path, relay);
    return 0;
}

int fast_open(struct fast_path *path, int64_t relay_id, int fd, int64_t listener_id, const struct fast_address *client, const struct fast_address *relayed,
              double expires_at, struct fast_bucket *bucket, struct fast_counters *counters) {
    struct relay *relay = calloc(1, sizeof *relay);
    if (!relay) return -ENOMEM;
    *relay = (struct relay){.id = relay_id, .fd = fd, .client = *client, .relayed = *relayed, .expires_at = expires_at, .bucket = bucket, .counters = counters};
    enter(path);
    relay->listener = listener_of(path, listener_id);
    int error = open_relay(path, relay);
    leave(path);
    if (error) free(relay);
    return error;
}

static void take_out(struct relay **chain, struct relay *relay, int is_client) {
    while (*chain != relay) chain = is_client ? &(*chain)->next_of_client : &(*chain)->next_of_relayed;
    *chain = is_client ? relay->next_of_client : relay->next_of_relayed;
}

int fast_close(struct fast_path *path, uint64_t handle) {
    enter(path);
    struct relay *relay = relay_of(path, handle);
    if (relay) {
        struct listener *listener = &path->listeners[relay->listener];
        epoll_ctl(path->epoll, EPOLL_CTL_DEL, relay->fd, NULL);
        take_out(chain_of_client(path, &relay->client, relay->listener), relay, 1);
        take_out(chain_of_relayed(path, &relay->relayed), relay, 0);
        path->slots[(uint32_t)handle] = NULL;
        path->free_slots[path->slots_free++] = (uint32_t)handle;
        path->relays--;
        listener->relays--;
        listener->is_taken = listener->fd >= 0 || listener->relays > 0;
    }
    leave(path);
    if (!relay) return -ENOENT;
    free(relay->permissions);
    free(relay->channels);
    free(relay);
    return 0;
}

int fast_extend(struct fast_path *path, uint64_t handle, double expires_at) {
    enter(path);
    struct relay *relay = relay_of(path, handle);
    if (relay) relay->expires_at = expires_at;
    leave(path);
    return relay ? 0 : -ENOENT;
}

// Doubles the room of an array where it is full.
static void *with_room(void *items, uint16_t used, uint16_t *room, size_t size) {
    if (used < *room) return items;
    uint16_t wanted = *room ? (uint16_t)(2 * *room) : 2;
    void *grown = used >= MOST_PER_RELAY ? NULL : realloc(items, wanted * size);
    if (grown) *room = wanted;
    return grown;
}

static int permit(struct relay *relay, const uint8_t *ip, double expires_at, double now) {
    int kept = 0;
    for (int at = 0; at < relay->permissions_used; at++) { // without its former self, and those that are over
        const struct permission *permission = &relay->permissions[at];
        if (memcmp(permission->ip, ip, sizeof permission->ip) != 0 && permission->expires_at > now) relay->permissions[kept++] = *permission;
    }
    relay->permissions_used = (uint16_t)kept;
    void *items = with_room(relay->permissions, relay->permissions_used, &relay->permissions_room, sizeof *relay->permissions);
    if (!items) return -ENOSPC;
    relay->permissions = items;
    struct permission *added = &relay->permissions[relay->permissions_used++];
    memcpy(added->ip, ip, sizeof added->ip);
    added->expires_at = expires_at;
    return 0;
}

int fast_permit(struct fast_path *path, uint64_t handle, const struct fast_address *host, double expires_at) {
    enter(path);
    struct relay *relay = relay_of(path, handle);
    int error = !relay ? -ENOENT : relay->relayed.family != host->family ? -EAFNOSUPPORT : permit(relay, host->ip, expires_at, now_s());
    leave(path);
    return error;
}

static int bind_channel(struct relay *relay, struct channel channel, double now) {
    int kept = 0;
    for (int at = 0; at < relay->channels_used; at++) { // one channel per peer and one peer per channel (s12); the core has refused what would break another one
        const struct channel *other = &relay->channels[at];
        if (other->number != channel.number && !is_same(&other->peer, &channel.peer) && other->expires_at > now) relay->channels[kept++] = *other;
    }
    relay->channels_used = (uint16_t)kept;
    void *items = with_room(relay->channels, relay->channels_used, &relay->channels_room, sizeof *relay->channels);
    if (!items) return -ENOSPC;
    relay->channels = items;
    relay->channels[relay->channels_used++] = channel;
    return 0;
}

int fast_bind(struct fast_path *path, uint64_t handle, uint16_t number, const struct fast_address *peer, int is_own, int may_leave,
              double expires_at) {
    if (number < 0x4000 || number > 0x4fff) return -EINVAL; // s12
    struct channel channel = {.peer = *peer, .expires_at = expires_at, .number = number, .is_own = is_own != 0, .may_leave = may_leave != 0};
    enter(path);
    struct relay *relay = relay_of(path, handle);
    int error = !relay ? -ENOENT : relay->relayed.family != peer->family ? -EAFNOSUPPORT : bind_channel(relay, channel, now_s());
    leave(path);
    return error;
}

// Python's calls: buckets

int fast_bucket(struct fast_path *path, struct fast_bucket *bucket, double bytes_per_s, double burst_bytes) {
    if (!(bytes_per_s >= 0) || !(burst_bytes >= 0)) return -EINVAL;
    enter(path);
    double now = now_s();
    if (bucket->filled_at == 0) { // a new one is full
        bucket->tokens = burst_bytes;
        bucket->filled_at = now;
    }
    fill(bucket, now);
    bucket->bytes_per_s = bytes_per_s;
    bucket->burst_bytes = burst_bytes;
    if (bucket->tokens > burst_bytes) bucket->tokens = burst_bytes;
    leave(path);
    return 0;
}

int fast_spend(struct fast_path *path, uint64_t handle, uint32_t bytes, int is_from_client) {
    enter(path);
    struct relay *relay = relay_of(path, handle);
    int result = relay ? spend(path, relay, bytes, now_s()) : -ENOENT;
    if (result > 0) count(relay, is_from_client, bytes);
    leave(path);
    return result;
}
