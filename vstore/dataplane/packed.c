/*
 * packed.c - compressed blocks: their bytes, unpacked by the thread that wants them, and the last few of them kept.
 *
 *      entry of the block: COMPRESSED | layer | byte offset       0: no single place has the bytes, Python composes them
 *                                          |
 *      file:   ... | deflate or zstd, as the layer's flags say | ...      ends by itself; never longer than a block
 *
 * A kept block is found by its entry: what lies compressed in a file is never changed while the file is open. Whatever is
 * wrong here (a stream that is none, a file that would have to be waited for) is left to Python, which says it in words.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

enum { KEPT_BYTES = 8 << 20, FEWEST = 4, MOST = 1024, ZSTD_WINDOW_LOG = 23, LONGEST = 2 << 20 };

struct packed {
	uint64_t entry;
	_Atomic uint32_t holders;
	uint8_t bytes[];
};

void packed_release(struct packed *block)
{
	if (block && atomic_fetch_sub(&block->holders, 1) == 1)
		free(block);
}

uint8_t *packed_bytes(struct packed *block)
{
	return block->bytes;
}

/* ---- kept blocks: a slot for each hash ------------------------------------------------------------- */

static uint32_t slots(const struct vs_volume *volume)
{
	uint64_t fit = (uint64_t)KEPT_BYTES >> volume->shift;

	return fit < FEWEST ? FEWEST : fit > MOST ? MOST : (uint32_t)fit;
}

static struct packed **slot_of(struct vs_volume *volume, uint64_t entry)
{
	return &volume->packed[(entry * 0x9E3779B97F4A7C15ull >> 32) % slots(volume)];
}

static struct packed *kept(struct vs_volume *volume, uint64_t entry)
{
	struct packed *found = NULL;

	pthread_mutex_lock(&volume->packed_lock);
	if (volume->packed)
		found = *slot_of(volume, entry);
	if (found && found->entry != entry)
		found = NULL;
	if (found)
		atomic_fetch_add(&found->holders, 1);
	pthread_mutex_unlock(&volume->packed_lock);
	return found;
}

static void keep(struct vs_volume *volume, struct packed *block)
{
	struct packed *old = NULL;

	pthread_mutex_lock(&volume->packed_lock);
	if (!volume->packed)
		volume->packed = calloc(slots(volume), sizeof(struct packed *));
	if (volume->packed) {
		struct packed **slot = slot_of(volume, block->entry);
		old = *slot;
		*slot = block;
		atomic_fetch_add(&block->holders, 1);
	}
	pthread_mutex_unlock(&volume->packed_lock);
	packed_release(old);
}

void packed_forget(struct vs_volume *volume)
{
	pthread_mutex_lock(&volume->packed_lock);
	for (uint32_t i = 0; volume->packed && i < slots(volume); i++)
		packed_release(volume->packed[i]);
	free(volume->packed);
	volume->packed = NULL;
	pthread_mutex_unlock(&volume->packed_lock);
}

/* ---- unpacking -------------------------------------------------------------------------------------- */

static bool inflate(const uint8_t *from, size_t length, uint8_t *to, size_t size)
{
	struct libdeflate_decompressor *decompressor = libdeflate_alloc_decompressor();
	size_t taken;

	if (!decompressor)
		return false;
	enum libdeflate_result result =
		libdeflate_deflate_decompress_ex(decompressor, from, length, to, size, &taken, NULL);
	libdeflate_free_decompressor(decompressor);
	return result == LIBDEFLATE_SUCCESS;
}

static bool unzstd(const uint8_t *from, size_t length, uint8_t *to, size_t size)
{
	ZSTD_DCtx *context = ZSTD_createDCtx();
	ZSTD_inBuffer in = { from, length, 0 };
	ZSTD_outBuffer out = { to, size, 0 };
	size_t left = 1;

	if (!context)
		return false;
	/* RFC 8878 3.1.1.1.2 asks decoders for 8 MiB; more would let an image take our memory */
	ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG);
	while (left && !ZSTD_isError(left) && out.pos < size) {
		size_t before = in.pos + out.pos;

		left = ZSTD_decompressStream(context, &out, &in);
		if (in.pos + out.pos == before)
			break; /* the file ends inside the frame */
	}
	ZSTD_freeDCtx(context);
	return out.pos == size && !ZSTD_isError(left);
}

/* What may hold the block's stream: at most a block from its offset on, less where the file ends. */
static ssize_t fetch(const struct layer *layer, uint64_t offset, uint8_t *to, size_t length, bool may_wait)
{
	struct iovec iov = { to, length };
	int flags = may_wait || layer->flags & VS_FILE_INSTANT ? 0 : RWF_NOWAIT;
	ssize_t taken = preadv2(layer->fd, &iov, 1, (off_t)offset, flags);

	/* what is in memory may end before the stream does */
	return flags && taken < (ssize_t)length ? -1 : taken;
}

static struct packed *unpack(struct vs_volume *volume, uint64_t entry, bool may_wait)
{
	const struct layer *layer = volume->layers[(entry >> LAYER_SHIFT) & LAYER_MASK];
	size_t size = volume_block_size(volume);

	if (!layer || !(layer->flags & (VS_FILE_DEFLATE | VS_FILE_ZSTD)) || layer->flags & VS_FILE_DIRECT)
		return NULL;
	struct packed *block = malloc(sizeof(*block) + size);
	uint8_t *stream = malloc(size);
	ssize_t length = block && stream ? fetch(layer, entry & OFFSET_MASK, stream, size, may_wait) : -1;
	bool done = length > 0 &&
		    (layer->flags & VS_FILE_ZSTD ? unzstd : inflate)(stream, (size_t)length, block->bytes, size);
	free(stream);
	if (!done) {
		free(block);
		return NULL;
	}
	block->entry = entry;
	block->holders = 1;
	keep(volume, block);
	return block;
}

struct packed *packed_hold(struct vs_volume *volume, const struct extent *extent, bool may_wait)
{
	uint64_t entry = (uint64_t)extent->layer << LAYER_SHIFT | extent->offset;

	if (extent->state != VS_COMPRESSED || !extent->offset)
		return NULL;
	struct packed *block = kept(volume, entry);
	return block ? block : unpack(volume, entry, may_wait);
}

int vs_unpack(int fd, uint32_t packing, const uint64_t *offsets, uint32_t count, void *blocks, uint64_t size)
{
	bool (*unpacked)(const uint8_t *, size_t, uint8_t *, size_t) = packing & VS_FILE_ZSTD ? unzstd : inflate;
	uint32_t done = 0;

	if (!size || size > LONGEST || count > INT32_MAX)
		return -EINVAL;
	uint8_t *stream = malloc(size);
	if (!stream)
		return -ENOMEM;
	for (; done < count; done++) {
		ssize_t length = pread(fd, stream, size, (off_t)offsets[done]);
		if (length <= 0 || !unpacked(stream, (size_t)length, (uint8_t *)blocks + done * size, size))
			break;
	}
	free(stream);
	return (int)done;
}
