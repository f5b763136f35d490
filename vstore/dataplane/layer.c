/*
 * layer.c - one file under a volume: its mapping, and which of its pages a copy may be taken from.
 *
 * A system call for every cached 4 KiB read costs more than the copy itself. So a regular file is also mapped, and a bit
 * a page says that an earlier read found the page in memory: then memcpy() does. Should the kernel have dropped the page
 * since, the copy takes a fault and waits for the disk, which is slow but right; io.c watches for such faults and forgets
 * all bits when it sees one. A file cut short by others raises SIGBUS, which fault.c turns into an ordinary read.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WINDOW_PAGES = 512 };

static struct mapping *new_mapping(const struct layer *layer, uint64_t length)
{
	/* writing through a mapping is for files that live in memory: on a disk's file the first touch of a page may wait */
	bool writable = layer->flags & (VS_FILE_INSTANT | VS_FILE_MEMORY) && !(layer->flags & VS_FILE_READ_ONLY);
	uint64_t words = (length >> PAGE_BITS) / 64 + 1;
	struct mapping *mapping = calloc(1, sizeof(*mapping) + (words + words / WINDOW_PAGES + 1) * sizeof(uint64_t));

	if (!mapping)
		return NULL;
	mapping->length = length;
	mapping->scanned = mapping->resident + words;
	mapping->bytes = mmap(NULL, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_NORESERVE,
			      layer->fd, 0);
	if (mapping->bytes == MAP_FAILED) {
		free(mapping);
		return NULL;
	}
	madvise(mapping->bytes, length, MADV_DONTDUMP);
	return mapping;
}

/* Maps the file for copying from memory; a file that cannot be mapped is simply read. */
void layer_map(struct vs_volume *volume, struct layer *layer)
{
	struct mapping *old = atomic_load(&layer->mapping);
	bool memory = layer->flags & VS_FILE_MEMORY;
	struct stat status;

	if (layer->flags & (VS_FILE_NULL | VS_FILE_DIRECT | VS_FILE_BLOCK_DEVICE) || fstat(layer->fd, &status))
		return;
	/* mincore() tells only owners the truth about a file; others hear that everything is resident */
	if (!memory && status.st_uid != geteuid() && geteuid())
		return;
	uint64_t length = (uint64_t)status.st_size & ~(uint64_t)((1u << PAGE_BITS) - 1);
	if (memory)
		length = (uint64_t)status.st_size;
	if (!length || (old && old->length == length))
		return;
	struct mapping *mapping = new_mapping(layer, length);
	if (!mapping)
		return;
	atomic_store(&layer->mapping, mapping);
	if (old) {
		volume_retire(volume, old->bytes, old->length);
		volume_retire(volume, old, 0);
	}
}

uint8_t *layer_resident(const struct layer *layer, uint64_t offset, uint64_t length)
{
	const struct mapping *mapping = atomic_load_explicit(&layer->mapping, memory_order_acquire);

	if (!mapping || length > mapping->length || offset > mapping->length - length)
		return NULL;
	if (layer->flags & VS_FILE_MEMORY)
		return mapping->bytes + offset;
	for (uint64_t page = offset >> PAGE_BITS; page <= (offset + length - 1) >> PAGE_BITS; page++)
		if (!(atomic_load_explicit(&mapping->resident[page / 64], memory_order_relaxed) >> (page % 64) & 1))
			return NULL;
	return mapping->bytes + offset;
}

static void mark(struct mapping *mapping, uint64_t first, uint64_t end, bool set)
{
	for (uint64_t page = first; page < end; page++) {
		uint64_t bit = 1ull << (page % 64);
		if (set)
			atomic_fetch_or_explicit(&mapping->resident[page / 64], bit, memory_order_relaxed);
		else
			atomic_fetch_and_explicit(&mapping->resident[page / 64], ~bit, memory_order_relaxed);
	}
}

/*
 * A look through the mapping of a tmpfs file would allocate the holes it meets, so there only pages that are known to be
 * data may be marked. mincore() knows; each window of pages is asked about once, since our own writes mark what they
 * allocate. (lseek(SEEK_HOLE) knows too, but walks the whole file to say so.)
 */
static void scan_window(struct mapping *mapping, uint64_t page)
{
	unsigned char resident[WINDOW_PAGES];
	uint64_t window = page / WINDOW_PAGES, first = window * WINDOW_PAGES, bit = 1ull << (window % 64);
	uint64_t pages = mapping->length >> PAGE_BITS;
	uint64_t count = pages - first < WINDOW_PAGES ? pages - first : WINDOW_PAGES;

	if (atomic_fetch_or(&mapping->scanned[window / 64], bit) & bit)
		return;
	if (mincore(mapping->bytes + (first << PAGE_BITS), count << PAGE_BITS, resident))
		return;
	for (uint64_t i = 0; i < count; i++)
		if (resident[i] & 1)
			mark(mapping, first + i, first + i + 1, true);
}

/* The pages that a range of the file touches, as far as they are mapped. NULL: none of them has a bit. */
static struct mapping *pages_of(const struct layer *layer, uint64_t offset, uint64_t length, uint64_t *first,
				uint64_t *end)
{
	struct mapping *mapping = atomic_load_explicit(&layer->mapping, memory_order_acquire);

	if (!mapping || (layer->flags & VS_FILE_MEMORY) || !length)
		return NULL;
	*first = offset >> PAGE_BITS;
	*end = (offset + length + (1u << PAGE_BITS) - 1) >> PAGE_BITS;
	if (*end > mapping->length >> PAGE_BITS)
		*end = mapping->length >> PAGE_BITS;
	return *first < *end ? mapping : NULL;
}

void layer_note_resident(const struct layer *layer, uint64_t offset, uint64_t length, bool written)
{
	uint64_t first, end;
	struct mapping *mapping = pages_of(layer, offset, length, &first, &end);

	if (!mapping)
		return;
	if (!(layer->flags & VS_FILE_INSTANT) || written) {
		mark(mapping, first, end, true);
		return;
	}
	for (uint64_t page = first; page < end; page += WINDOW_PAGES - page % WINDOW_PAGES)
		scan_window(mapping, page);
}

void layer_forget_resident(const struct layer *layer, uint64_t offset, uint64_t length)
{
	uint64_t first, end;
	struct mapping *mapping = pages_of(layer, offset, length, &first, &end);

	if (mapping)
		mark(mapping, first, end, false);
}

/*
 * What to answer to a flush that ended with `result`. The kernel tells once that it could not write back what a file had
 * in memory; then the pages count as clean, and the next flush succeeds. So a failure is kept for as long as the layer is
 * open: the writes before it are gone, and no flush after it may be called good. With O_DIRECT nothing waits in memory.
 */
int layer_synced(struct layer *layer, int result)
{
	if (UNLIKELY(result) && !(layer->flags & VS_FILE_DIRECT))
		atomic_store(&layer->lost, result);
	int lost = atomic_load_explicit(&layer->lost, memory_order_relaxed);
	return result ? result : lost;
}

void layer_free(struct layer *layer)
{
	if (!layer)
		return;
	if (layer->mapping)
		munmap(layer->mapping->bytes, layer->mapping->length);
	free(layer->mapping);
	if (layer->fd >= 0)
		close(layer->fd);
	free(layer);
}
