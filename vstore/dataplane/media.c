/*
 * media.c - what a CDB asks of the volume, cut where the block map cuts, and started piece by piece.
 *
 * All blocks are looked at before the first piece starts: what needs Python goes there untouched, and whole.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

struct io *media_io(struct vs_request *request, const struct media *media, const struct extent *extent)
{
	struct io *io = request->io_busy ? malloc(sizeof(*io)) : &request->io;

	if (!io)
		return NULL;
	request->io_busy = true;
	*io = (struct io){ .request = request,
			   .volume = request->lun->volume,
			   .layer = extent->layer,
			   .operation = media->operation,
			   .offset = extent->offset,
			   .length = extent->length,
			   .durable = media->durable };
	return io;
}

/* A private list of the next `length` bytes under the cursor. */
static int slice(struct cursor *from, uint64_t length, struct io *io)
{
	struct iovec *iov = malloc((from->count + 1) * sizeof(*iov));

	if (!iov)
		return -ENOMEM;
	io->data = io->owned = iov;
	while (length && from->count) {
		uint64_t left = from->iov->iov_len - from->skip;
		uint64_t take = left < length ? left : length;
		iov[io->data_count++] = (struct iovec){ (uint8_t *)from->iov->iov_base + from->skip, take };
		cursor_skip(from, take);
		length -= take;
	}
	return 0;
}

/* -EAGAIN: Python has to unpack the block. */
static int read_packed(struct vs_volume *volume, uint64_t offset, const struct extent *extent, struct cursor *data)
{
	struct packed *block = packed_hold(volume, extent, false);
	int error = -EAGAIN;

	if (block)
		error = cursor_guarded(cursor_copy_in, data,
				       packed_bytes(block) + (offset & (volume_block_size(volume) - 1)),
				       extent->length);
	packed_release(block);
	return error;
}

/* Starts one piece of the request; false, with the error noted, when it could not be. */
static bool segment(struct vs_request *request, const struct media *media, uint64_t offset, struct extent *extent,
		    struct cursor *data)
{
	bool moves = media->operation == IO_READ || media->operation == IO_WRITE;
	struct fresh *claim = NULL;
	int result = 0;

	if (!moves && reads_zero(extent))
		return true;
	if (media->operation == IO_READ && reads_zero(extent))
		result = cursor_guarded(cursor_fill_zero, data, NULL, extent->length);
	else if (media->operation == IO_READ && extent->state == VS_COMPRESSED)
		result = read_packed(request->lun->volume, offset, extent, data);
	else if (media->operation == IO_WRITE && allocates_over(request->lun->volume, extent))
		result = allocate_claim(request->lun->volume, offset, extent->length, extent, &claim);
	else if (extent->state != VS_DATA && (extent->state != VS_SHARED || media->operation != IO_READ))
		result = -EAGAIN;
	if (result) {
		request->error = result;
		return false;
	}
	/* what has been copied is done; an error of a segment before this one stays */
	if (media->operation == IO_READ && (reads_zero(extent) || extent->state == VS_COMPRESSED))
		return true;
	struct io *io = media_io(request, media, extent);
	if (!io) {
		if (claim)
			allocate_done(request->lun->volume, claim, offset, extent->length, false);
		request->error = -ENOMEM;
		return false;
	}
	io->claim = claim;
	io->claim_offset = offset;
	io->claim_length = extent->length;
	request->pending++;
	result = moves ? slice(data, extent->length, io) : 0;
	if (!result)
		result = io_start(request->ring->loop, io);
	if (result != IO_STARTED)
		io_done(io, result);
	return true;
}

static bool zeroes_by_map(const struct vs_volume *volume, const struct media *media)
{
	return (media->operation == IO_PUNCH || media->operation == IO_ZERO) && volume_zeroes_by_map(volume);
}

/* Whether the fast path can serve every block of the range as it stands in the map. */
static bool mapped(struct vs_volume *volume, const struct media *media)
{
	if (zeroes_by_map(volume, media)) /* zeroing finds out itself, and may be repeated */
		return true;
	for (uint64_t done = 0; done < media->length;) {
		struct extent extent = volume_extent(volume, media->offset + done, media->length - done);
		bool packed = extent.state == VS_COMPRESSED && extent.offset;
		bool read = media->operation == IO_READ && (reads_zero(&extent) || extent.state == VS_SHARED || packed);
		bool write = media->operation == IO_WRITE && allocates_over(volume, &extent);

		if ((extent.state != VS_DATA && !read && !write) || !extent.length)
			return false;
		done += extent.length;
	}
	return true;
}

static void start_segments(struct vs_request *request, const struct media *media)
{
	struct vs_volume *volume = request->lun->volume;
	bool read = media->operation == IO_READ, by_map = zeroes_by_map(volume, media);
	struct cursor data = { &request->iov[read ? request->in_first : request->out_first],
			       read ? request->in_count : request->out_count, 0 };

	for (uint64_t done = 0; done < media->length;) {
		uint64_t offset = media->offset + done, left = media->length - done;
		int64_t zeroed = by_map ? allocate_zero(volume, offset, left, false) : 0;

		if (zeroed < 0) {
			request->error = (int)zeroed;
			return;
		}
		if (zeroed) {
			done += (uint64_t)zeroed;
			continue;
		}
		struct extent extent = volume_extent(volume, offset, left);
		if (by_map)
			zero_cut(volume, offset, &extent);
		if (!segment(request, media, offset, &extent, &data))
			return;
		done += extent.length;
	}
}

/* Whether nobody holds a part of these ranges against such a request. */
static bool may_begin(struct vs_volume *volume, const struct media *ranges, uint32_t count)
{
	bool read = ranges->operation == IO_READ;

	if (LIKELY(!atomic_load_explicit(read ? &volume->exclusive : &volume->guarded, memory_order_relaxed)))
		return true;
	for (uint32_t i = 0; i < count; i++)
		if (!(read ? hold_lets_read : hold_lets_write)(volume, ranges[i].offset, ranges[i].length, false))
			return false;
	return true;
}

/* Claims the place of a write inside one block by one look at its record. False: it needs none, or more than that. */
static bool claim_in_block(struct vs_volume *volume, const struct media *media, struct extent *extent,
			   struct fresh **claim)
{
	uint64_t within = media->offset & (volume_block_size(volume) - 1), in_a_row;

	if (media->operation != IO_WRITE || !volume->allocation.sub_shift ||
	    media->length > volume_block_size(volume) - within)
		return false;
	unsigned state = entry_state(map_look_up(volume, media->offset >> volume->shift, &in_a_row));
	if (state == VS_DATA || state == VS_NOT_LOADED)
		return false;
	return !allocate_claim(volume, media->offset, media->length, extent, claim);
}

/* The whole request is one piece, and no list is copied. */
static void start_alone(struct vs_request *request, const struct media *media, const struct extent *extent,
			struct fresh *claim)
{
	bool read = media->operation == IO_READ;
	struct io *io = media_io(request, media, extent);

	io->data = &request->iov[read ? request->in_first : request->out_first];
	io->data_count = read ? request->in_count : request->out_count;
	io->claim = claim;
	io->claim_offset = media->offset;
	io->claim_length = media->length;
	request->pending = 1;
	int result = io_start(request->ring->loop, io);
	if (UNLIKELY(result == IO_STARTED)) {
		request_link(request);
		return;
	}
	request->error = io_end(io, result);
	if (claim)
		allocate_done(io->volume, claim, media->offset, media->length, !request->error);
	scsi_answer(request);
}

/* Runs ranges[0..count) as one request. The first extent of most requests is the whole of it: no list is copied. */
void media_start(struct vs_request *request, const struct media *ranges, uint32_t count)
{
	struct vs_volume *volume = request->lun->volume;
	bool read = ranges->operation == IO_READ;
	struct fresh *claim = NULL;
	struct extent extent;

	if (UNLIKELY(!may_begin(volume, ranges, count))) {
		request_to_python(request); /* whose threads may wait */
		return;
	}
	for (uint32_t i = 0; !read && i < count; i++)
		volume_note(volume, ranges[i].offset, ranges[i].length);
	if (count == 1 && claim_in_block(volume, ranges, &extent, &claim)) {
		start_alone(request, ranges, &extent, claim);
		return;
	}
	extent = volume_extent(volume, ranges->offset, ranges->length);
	if (LIKELY(count == 1 && extent.state == VS_DATA && extent.length == ranges->length) &&
	    !zeroes_by_map(volume, ranges)) {
		start_alone(request, ranges, &extent, NULL);
		return;
	}
	for (uint32_t i = 0; i < count; i++)
		if (!mapped(volume, &ranges[i])) {
			request_to_python(request);
			return;
		}
	request_link(request);
	request->pending = 1; /* ours, so that no segment ends the request before all are started */
	for (uint32_t i = 0; i < count; i++)
		start_segments(request, &ranges[i]);
	if (!--request->pending)
		scsi_request_done(request);
}
