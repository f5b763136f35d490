/*
 * virtio_scsi.c - from descriptor chain to answer (virtio 1.2, 5.6).
 *
 *   chain --> header copied, checked --> LUN with an open gate, opcode with a row, nothing odd?
 *                                           yes: the fast path: map, bytes, GOOD        no: Python
 *
 * No SCSI policy lives here. What the fast path cannot answer with GOOD - a refusal, an I/O error, a bit that it does
 * not know - it hands to Python untouched; repeating a read or a write from the start is harmless, and a flush that
 * failed fails again (layer_synced). So the only answer that C ever writes is one and the same: GOOD, no residual.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the fast path ----------------------------------------------------------------------------- */

void scsi_answer(struct vs_request *request)
{
	static const uint8_t good[VS_RESPONSE_BYTES];
	struct vring *ring = request->ring;
	uint64_t data_in = request->kind == VS_READ ? request->in_length : 0;

	if (request->error == -EFAULT) {
		vring_break(ring); /* its memory went away under the I/O */
	} else if (request->error) {
		request_to_python(request);
		return;
	}
	vs_lun_counters *of_lun = &request->lun->counts[ring->loop->index].counters;
	if (request->kind == VS_READ) {
		ring->counters.bytes_read += data_in;
		of_lun->reads++;
		of_lun->bytes_read += data_in;
	} else if (request->kind == VS_WRITE) {
		ring->counters.bytes_written += request->out_length;
		of_lun->writes++;
		of_lun->bytes_written += request->out_length;
	}
	request_finish(request, good, sizeof(good), data_in);
}

/* The last segment of a request that did not end at once. */
void scsi_request_done(struct vs_request *request)
{
	request_unlink(request);
	scsi_answer(request);
}

static uint64_t big_endian(const uint8_t *at, unsigned width)
{
	uint64_t value = 0;

	while (width--)
		value = value << 8 | *at++;
	return value;
}

/* The place of a disk that lies in one row and is overwritten there. All others have tables, which a format commits. */
static bool in_one_place(struct vs_volume *volume, struct extent *place)
{
	*place = entry_extent(atomic_load(&volume->whole), 0, 0);
	return place->state == VS_DATA;
}

static bool transfer(struct vs_request *request, const vs_fast_row *row, uint64_t lba, uint64_t blocks)
{
	const vs_lun_settings *settings = &request->lun->settings;
	bool read = row->kind == VS_READ;
	struct media media = { read ? IO_READ : IO_WRITE, lba << settings->block_shift, blocks << settings->block_shift,
			       false };
	uint64_t wanted = read ? request->in_length : request->out_length;
	uint64_t other = read ? request->out_length : request->in_length;
	struct extent place;

	if (!blocks || blocks > settings->max_transfer || media.length != wanted || other)
		return false;
	if (!read && (settings->write_through || (request->header[19 + row->fua_at] & row->fua_mask)))
		media.durable = true;
	/* a place that no table names yet is not durable, however well its bytes are: only a commit makes it so */
	if (media.durable && !in_one_place(request->lun->volume, &place))
		return false;
	media_start(request, &media, 1);
	return true;
}

static bool all_zero(struct vs_request *request)
{
	struct cursor from = { &request->iov[request->out_first], request->out_count, 0 };
	uint8_t block[4096];
	uint64_t length = request->out_length;

	cursor_copy_out(&from, block, length);
	return !block[0] && !memcmp(block, block + 1, length - 1);
}

static bool write_same(struct vs_request *request, const vs_fast_row *row, uint64_t lba, uint64_t blocks)
{
	const vs_lun_settings *settings = &request->lun->settings;
	const uint8_t *cdb = request->header + 19;
	bool no_data = row->ndob_mask && (cdb[row->ndob_at] & row->ndob_mask);
	bool unmap = cdb[row->unmap_at] & row->unmap_mask;
	struct media media = { unmap ? IO_PUNCH : IO_ZERO, lba << settings->block_shift,
			       blocks << settings->block_shift, false };

	if (!blocks || blocks > settings->max_write_same || request->in_length || settings->write_through)
		return false;
	if (unmap && !settings->deallocates)
		return false;
	if (request->out_length != (no_data ? 0 : 1ull << settings->block_shift) || (!no_data && !all_zero(request)))
		return false;
	media_start(request, &media, 1);
	return true;
}

/* SBC-4 5.35: parameter list = 8-byte header, then 16-byte block descriptors. Anything unusual is Python's. */
static bool unmap(struct vs_request *request, uint64_t list_length)
{
	enum { MOST = 64 };
	const vs_lun_settings *settings = &request->lun->settings;
	struct cursor from = { &request->iov[request->out_first], request->out_count, 0 };
	struct media ranges[MOST];
	uint8_t list[8 + 16 * MOST];

	if (!settings->deallocates || settings->write_through || request->in_length ||
	    list_length != request->out_length || list_length < 24 || list_length > sizeof(list) ||
	    (list_length - 8) % 16)
		return false;
	uint32_t count = (uint32_t)(list_length - 8) / 16;
	cursor_copy_out(&from, list, list_length);
	if (big_endian(list, 2) != list_length - 2 || big_endian(list + 2, 2) != list_length - 8 ||
	    count > settings->max_unmap_descriptors)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t lba = big_endian(list + 8 + 16 * i, 8), blocks = big_endian(list + 16 + 16 * i, 4);

		if (!blocks || lba > settings->blocks || blocks > settings->blocks - lba)
			return false;
		ranges[i] = (struct media){ IO_PUNCH, lba << settings->block_shift, blocks << settings->block_shift,
					    false };
	}
	media_start(request, ranges, count);
	return true;
}

static bool synchronize(struct vs_request *request)
{
	struct media media = { IO_FLUSH, 0, 0, false };
	struct extent place;

	if (request->in_length || request->out_length || !in_one_place(request->lun->volume, &place))
		return false;
	struct io *io = media_io(request, &media, &place);
	request->pending = 1;
	int result = io_start(request->ring->loop, io);
	if (result == IO_STARTED) {
		request_link(request);
	} else {
		request->error = io_end(io, result);
		scsi_answer(request);
	}
	return true;
}

static bool any_set(const uint8_t *cdb, const uint8_t *mask)
{
	uint64_t a[4], b[4];

	memcpy(a, cdb, sizeof(a));
	memcpy(b, mask, sizeof(b));
	return (a[0] & b[0]) | (a[1] & b[1]) | (a[2] & b[2]) | (a[3] & b[3]);
}

/*
 * A command whose task attribute is not SIMPLE is Python's (SAM-5 clause 8), and what comes behind it until it has ended
 * too: Python knows whether it may begin. Between queues there is no order.
 */
static bool raise_barrier(struct vs_request *request)
{
	struct lun *lun = device_lun(request->ring->device, request->header);

	if (lun) {
		atomic_fetch_add(&lun->barriers, 1);
		request->barrier = lun->number;
	}
	return false;
}

static bool serve_fast(struct vs_request *request)
{
	const uint8_t *cdb = request->header + 19;
	const vs_fast_row *row = request->ring->device->fast[cdb[0]];

	if (request->header[16])
		return raise_barrier(request);
	if (!row || any_set(cdb, row->slow_mask))
		return false;
	request->lun = device_lun(request->ring->device, request->header);
	if (!request->lun || atomic_load_explicit(&request->lun->barriers, memory_order_relaxed))
		return false;
	const vs_lun_settings *settings = &request->lun->settings;
	uint32_t gate = row->kind == VS_READ          ? VS_GATE_READ
			: row->kind == VS_SYNCHRONIZE ? VS_GATE_FLUSH
						      : VS_GATE_WRITE;
	if (!(settings->gate & gate))
		return false;
	uint64_t lba = big_endian(cdb + row->lba_at, row->lba_width);
	uint64_t length = big_endian(cdb + row->length_at, row->length_width);
	memcpy(&request->tag, request->header + 8, sizeof(request->tag));
	request->kind = row->kind;
	if (row->kind == VS_UNMAP)
		return unmap(request, length);
	if (!length)
		length = row->length_of_zero;
	if (lba > settings->blocks || length > settings->blocks - lba)
		return false;
	if (row->kind == VS_SYNCHRONIZE)
		return synchronize(request);
	if (row->kind == VS_WRITE_SAME)
		return write_same(request, row, lba, length);
	return transfer(request, row, lba, length);
}

/* ---- serving a ring ------------------------------------------------------------------------------ */

static bool serve_one(struct vring *ring)
{
	struct loop *loop = ring->loop;

	/* a chain's head is the driver's again only through the used ring, so an honest one runs out of heads */
	if (ring->in_flight >= ring->size) {
		vring_break(ring);
		return false;
	}
	struct vs_request *request = request_new(loop);
	if (!request)
		return false;
	request->ring = ring;
	loop->serving = request;
	int got = vring_fetch(ring, request);
	if (got == 1)
		got = request_parse(request, ring->index >= 2) ? -EPROTO : 1;
	if (got != 1) {
		loop->serving = NULL;
		request_free(request);
		if (got == -EPROTO)
			vring_break(ring);
		return false;
	}
	request->counted = true;
	ring->in_flight++;
	ring->counters.fetched++;
	if (ring->index < 2 || !serve_fast(request))
		request_to_python(request);
	loop->serving = NULL;
	return true;
}

unsigned scsi_serve(struct vring *ring, unsigned limit)
{
	unsigned done = 0;

	ring->loop->serving_ring = ring;
	while (done < limit && vring_active(ring) && vring_has_work(ring) && serve_one(ring))
		done++;
	return done;
}
