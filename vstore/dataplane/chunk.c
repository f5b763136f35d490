/*
 * chunk.c - one chunk of a stretch: read where the pieces say, looked through for zeros, given its places, and written.
 */
#define _GNU_SOURCE
#include "chunk.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define NOWHERE UINT64_MAX

static bool holds_zeros(const uint8_t *bytes, uint64_t length)
{
	return !bytes[0] && !memcmp(bytes, bytes + 1, length - 1);
}

/* ---- reading ------------------------------------------------------------------------------------ */

static int read_all(int fd, uint8_t *to, uint64_t length, uint64_t offset)
{
	while (length) {
		ssize_t count = pread(fd, to, length, (off_t)offset);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			return count ? -errno : -ENODATA; /* somebody has cut the file short */
		to += count;
		offset += (uint64_t)count;
		length -= (uint64_t)count;
	}
	return 0;
}

/* Units `from` to `to` of the chunk have been read: which of them have to be written? */
static void look(const struct vs_mover *mover, struct chunk *chunk, uint64_t from, uint64_t to)
{
	uint64_t length = chunk->end - chunk->start;

	for (uint64_t at = from; at < to; at += mover->unit)
		if (!holds_zeros(chunk->bytes + at, lesser(mover->unit, length - at)))
			chunk->where[at / mover->unit] = 0;
}

/* Only units that a piece touches are touched. */
int chunk_read(const struct vs_mover *mover, struct chunk *chunk)
{
	const vs_stretch *stretch = &chunk->of->is;
	uint64_t length = chunk->end - chunk->start, from = 0, at = 0;

	for (uint64_t n = 0; n * mover->unit < length; n++)
		chunk->where[n] = NOWHERE;
	for (uint32_t n = chunk->piece; n < stretch->piece_count && stretch->pieces[n].start < chunk->end; n++) {
		const vs_piece *piece = &stretch->pieces[n];
		uint64_t skipped = piece->start < chunk->start ? chunk->start - piece->start : 0;
		uint64_t start = piece->start + skipped - chunk->start;
		uint64_t end = lesser(piece->start + piece->length - chunk->start, length);

		if (down(start, mover->unit) >= at) { /* the units before are complete */
			uint64_t whole = lesser(up(at, mover->unit), length);
			memset(chunk->bytes + at, 0, whole - at);
			look(mover, chunk, from, whole);
			from = at = down(start, mover->unit);
		}
		memset(chunk->bytes + at, 0, start - at);
		int error = read_all(piece->fd, chunk->bytes + start, end - start, piece->offset + skipped);
		if (error)
			return error;
		at = end;
	}
	uint64_t whole = lesser(up(at, mover->unit), length);
	memset(chunk->bytes + at, 0, whole - at);
	look(mover, chunk, from, whole);
	return 0;
}

/* ---- choosing places ------------------------------------------------------------------------------ */

static void choose_own(const struct vs_mover *mover, struct chunk *chunk)
{
	for (uint64_t at = chunk->start; at < chunk->end; at += mover->unit) {
		uint64_t *where = &chunk->where[(at - chunk->start) / mover->unit];

		if (*where != NOWHERE)
			*where = at - chunk->of->is.start + chunk->of->is.base;
	}
}

static int choose_next(struct vs_mover *mover, struct chunk *chunk)
{
	uint64_t units = up(chunk->end - chunk->start, mover->unit) / mover->unit;

	for (uint64_t n = 0; n < units; n++) {
		if (chunk->where[n] == NOWHERE)
			continue;
		while (mover->room < mover->room_count && mover->room_used == mover->rooms[mover->room].length) {
			mover->room++;
			mover->room_used = 0;
		}
		if (mover->room == mover->room_count)
			return -ENOBUFS;
		chunk->where[n] = mover->rooms[mover->room].offset + mover->room_used;
		mover->room_used += mover->unit;
	}
	memcpy(chunk->of->is.places + (chunk->start - chunk->of->is.start) / mover->unit, chunk->where,
	       units * sizeof(uint64_t));
	return 0;
}

int chunk_place(struct vs_mover *mover, struct chunk *chunk)
{
	if (chunk->of->is.places)
		return choose_next(mover, chunk);
	choose_own(mover, chunk);
	return 0;
}

/* ---- writing ------------------------------------------------------------------------------------ */

static int write_all(int fd, const uint8_t *from, uint64_t length, uint64_t offset)
{
	uint64_t done = 0;

	while (done < length) {
		ssize_t count = pwrite(fd, from + done, length - done, (off_t)(offset + done));

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			return count ? -errno : -ENOSPC;
		done += (uint64_t)count;
	}
	return 0;
}

int chunk_write(const struct vs_mover *mover, const struct chunk *chunk)
{
	uint64_t length = chunk->end - chunk->start, unit = mover->unit, first = NOWHERE, last = 0;

	for (uint64_t at = 0; at < length;) {
		uint64_t place = chunk->where[at / unit], stop = at + unit;

		if (place == NOWHERE) {
			at = stop;
			continue;
		}
		while (stop < length && chunk->where[stop / unit] == place + (stop - at))
			stop += unit;
		int error = write_all(mover->target, chunk->bytes + at, lesser(stop, length) - at, place);
		if (error)
			return error;
		first = lesser(first, place);
		last = place + (stop - at) > last ? place + (stop - at) : last;
		at = stop;
	}
	/* only a hint: whether it came to anything is what fdatasync() tells */
	if (last)
		sync_file_range(mover->target, (off_t)first, (off_t)(last - first), SYNC_FILE_RANGE_WRITE);
	return 0;
}
