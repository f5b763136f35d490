/*
 * fast_path.c - random commands through the C fast path, under ASan and UBSan, against a second reading of SBC-4.
 *
 *     seed --> CDB, attribute, lengths, segments --> mock driver --> data plane --> GOOD, or a notice to Python
 *                        |                                                             |  equal?
 *                        `--> judge: what the standard's bytes say, here once more ----'
 *
 * Each answer must be what the judge says: served, with exactly these bytes read and nothing else touched; or left to
 * Python with the guest's memory as it was. A copy of the disk takes every write that was served, and the disk's own file
 * is compared with it now and then. Usage: fast_path SEED COMMANDS; the same seed plays the same commands.
 */
#define _GNU_SOURCE
#include "../native/commands.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { POISON = 0xaa, MOST_SEGMENTS = 6, MOST_BYTES = 96 * BLOCK, COMPARED_EVERY = 4096, A_DRIVERS_LIFE = 50000 };
enum kind { READ, WRITE, FLUSH, SAME, UNMAP };

/* A command as SBC-4 prints it. `plain`: the bits of bytes 1, of the group number's and of the control byte that ask for
 * nothing that needs judgement: DPO, FUA, UNMAP, NDOB; the group number. */
static const struct form {
	uint8_t opcode, size, lba_at, lba_width, length_at, length_width, plain_1, group_at;
	enum kind kind;
} forms[] = {
	{ 0x08, 6, 1, 3, 4, 1, 0x1f, 0, READ },     { 0x28, 10, 2, 4, 7, 2, 0x18, 6, READ },
	{ 0xa8, 12, 2, 4, 6, 4, 0x18, 10, READ },   { 0x88, 16, 2, 8, 10, 4, 0x18, 14, READ },
	{ 0x0a, 6, 1, 3, 4, 1, 0x1f, 0, WRITE },    { 0x2a, 10, 2, 4, 7, 2, 0x18, 6, WRITE },
	{ 0x8a, 16, 2, 8, 10, 4, 0x18, 14, WRITE }, { 0x35, 10, 2, 4, 7, 2, 0x00, 6, FLUSH },
	{ 0x93, 16, 2, 8, 10, 4, 0x09, 14, SAME },  { 0x42, 10, 0, 0, 7, 2, 0x00, 6, UNMAP },
};

struct order {
	const struct form *form;
	struct cdb cdb;
	uint8_t attribute;
	uint32_t out, in; /* bytes of the buffers */
	uint8_t data[MOST_BYTES];
};

struct range {
	uint64_t lba, blocks;
};

struct verdict {
	bool served;
	bool or_left; /* a host that cannot write zeros without freeing them leaves it to Python */
	uint32_t count;
	struct range ranges[16];
};

static uint64_t seed, state;
static unsigned long commands;
static uint8_t shadow[DISK_LENGTH];
static unsigned long long served[COUNT(forms)], left[COUNT(forms)];

/* splitmix64 */
static uint64_t draw(uint64_t below)
{
	uint64_t z = state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (z ^ z >> 31) % below;
}

static void put(uint8_t *at, uint64_t value, unsigned width)
{
	while (width--)
		*at++ = (uint8_t)(value >> (8 * width));
}

static uint64_t get(const uint8_t *at, unsigned width)
{
	uint64_t value = 0;

	while (width--)
		value = value << 8 | *at++;
	return value;
}

/* ---- the judge ---- */

static bool inside(struct range range)
{
	return range.lba <= DISK_BLOCKS && range.blocks <= DISK_BLOCKS - range.lba;
}

static bool plain(const struct order *order)
{
	const struct form *form = order->form;
	const uint8_t *cdb = order->cdb.bytes;

	if (order->attribute || cdb[form->size - 1] || cdb[1] & ~form->plain_1)
		return false;
	return !form->group_at || !(cdb[form->group_at] & 0xe0);
}

/* SBC-4 5.35 */
static bool judge_unmap(const struct order *order, uint64_t length, struct verdict *verdict)
{
	if (length != order->out || length < 24 || (length - 8) % 16 || get(order->data, 2) != length - 2 ||
	    get(order->data + 2, 2) != length - 8 || (length - 8) / 16 > COUNT(verdict->ranges))
		return false;
	verdict->count = (uint32_t)(length - 8) / 16;
	for (uint32_t i = 0; i < verdict->count; i++) {
		const uint8_t *descriptor = order->data + 8 + 16 * i;

		verdict->ranges[i] = (struct range){ get(descriptor, 8), get(descriptor + 8, 4) };
		if (!verdict->ranges[i].blocks || !inside(verdict->ranges[i]))
			return false;
	}
	return true;
}

static struct verdict judge(const struct order *order)
{
	const struct form *form = order->form;
	const uint8_t *cdb = order->cdb.bytes;
	uint64_t length = get(cdb + form->length_at, form->length_width);
	struct verdict verdict = { false, false, 1, { { get(cdb + form->lba_at, form->lba_width), length } } };
	struct range *range = &verdict.ranges[0];

	if (form->size == 6 && !length)
		range->blocks = 256; /* SBC-4 5.10 */
	uint64_t bytes = range->blocks * BLOCK;
	if (!plain(order) || (form->kind != UNMAP && !inside(*range)))
		return verdict;
	switch (form->kind) {
	case READ: verdict.served = bytes && order->in == bytes && !order->out; break;
	case WRITE: verdict.served = bytes && order->out == bytes && !order->in; break;
	case FLUSH: verdict.served = !order->in && !order->out; break;
	case UNMAP: verdict.served = !order->in && judge_unmap(order, length, &verdict); break;
	case SAME: {
		bool no_data = cdb[1] & 1, zero = true;

		for (uint32_t i = 0; i < order->out; i++)
			zero = zero && !order->data[i];
		verdict.served = bytes && !order->in && order->out == (no_data ? 0 : BLOCK) && zero;
		verdict.or_left = verdict.served && !(cdb[1] & 8);
	}
	}
	return verdict;
}

static void apply(const struct order *order, const struct verdict *verdict)
{
	for (uint32_t i = 0; i < verdict->count; i++) {
		uint8_t *at = shadow + verdict->ranges[i].lba * BLOCK;

		if (order->form->kind == WRITE)
			memcpy(at, order->data, order->out);
		else if (order->form->kind == SAME || order->form->kind == UNMAP)
			memset(at, 0, verdict->ranges[i].blocks * BLOCK);
	}
}

/* ---- what is sent ---- */

static uint64_t some_lba(uint64_t blocks)
{
	switch (draw(16)) {
	case 0: return DISK_BLOCKS - draw(2 * blocks + 2);
	case 1: return draw(1ull << (1 + draw(63)));
	case 2: return 0;
	default: return draw(DISK_BLOCKS - 256);
	}
}

static void draw_unmap(struct order *order)
{
	uint32_t count = (uint32_t)draw(18);

	order->out = 8 + 16 * count;
	put(order->data, order->out - 2, 2);
	put(order->data + 2, order->out - 8, 2);
	memset(order->data + 4, 0, 4);
	for (uint32_t i = 0; i < count; i++) {
		uint64_t blocks = draw(40) ? 1 + draw(64) : 0;

		put(order->data + 8 + 16 * i, draw(40) ? draw(DISK_BLOCKS - 64) : some_lba(blocks), 8);
		put(order->data + 16 + 16 * i, blocks, 4);
	}
	put(order->cdb.bytes + 7, order->out, 2);
}

static void draw_order(struct order *order)
{
	const struct form *form = order->form = &forms[draw(COUNT(forms))];
	uint64_t blocks = draw(8) ? 1 + draw(16) : draw(MOST_BYTES / BLOCK + 1);
	uint8_t *cdb = order->cdb.bytes;

	memset(cdb, 0, sizeof(order->cdb.bytes));
	order->attribute = draw(64) ? 0 : (uint8_t)draw(8);
	order->in = order->out = 0;
	put(cdb + form->lba_at, some_lba(blocks), form->lba_width);
	put(cdb + form->length_at, blocks, form->length_width);
	cdb[0] = form->opcode;
	if (form->size > 6)
		cdb[1] = (uint8_t)draw(256) & (draw(16) ? form->plain_1 : 0xff);
	if (form->kind == READ)
		order->in = (uint32_t)blocks * BLOCK;
	if (form->kind == WRITE || (form->kind == SAME && !(cdb[1] & 1)))
		order->out = form->kind == SAME ? BLOCK : (uint32_t)blocks * BLOCK;
	for (uint32_t i = 0, byte = (uint8_t)draw(256); i < order->out; i++)
		order->data[i] = form->kind == SAME ? 0 : (uint8_t)(byte + i * 3 + (i >> 9));
	if (form->kind == UNMAP)
		draw_unmap(order);
	if (!draw(16))
		cdb[1 + draw(31)] ^= (uint8_t)(1 << draw(8));
	if (order->out && !draw(32))
		order->data[draw(order->out)] ^= (uint8_t)(1 << draw(8));
	if (!draw(32))
		order->out = (uint32_t)draw(MOST_BYTES / 2);
	if (!draw(32))
		order->in = (uint32_t)draw(MOST_BYTES / 2);
}

/* Cuts a buffer into segments in either region; gives how many. */
static uint32_t segments(struct driver *driver, uint32_t length, bool writable, struct buffer *to)
{
	uint32_t count = 0;

	while (length) {
		uint32_t take = count + 1 < MOST_SEGMENTS && draw(2) ? 1 + (uint32_t)draw(length) : length;

		to[count] = (struct buffer){ driver_allocate(driver, (uint32_t)draw(2), take, 1 + draw(64)), take,
					     writable };
		memset(driver_host(driver, to[count].guest), POISON, take);
		length -= take;
		count++;
	}
	return count;
}

static void copy_out(struct driver *driver, const struct order *order, const struct buffer *buffers, uint32_t count)
{
	for (uint32_t i = 0, at = 0; i < count; at += buffers[i++].length)
		memcpy(driver_host(driver, buffers[i].guest), order->data + at, buffers[i].length);
}

/* Whether all data-in is what these bytes are; poison where `bytes` is NULL. */
static bool came(struct driver *driver, const struct buffer *buffers, uint32_t count, const uint8_t *bytes)
{
	for (uint32_t i = 0, at = 0; i < count; at += buffers[i++].length) {
		const uint8_t *here = driver_host(driver, buffers[i].guest);

		if (bytes && memcmp(here, bytes + at, buffers[i].length))
			return false;
		for (uint32_t n = 0; !bytes && n < buffers[i].length; n++)
			if (here[n] != POISON)
				return false;
	}
	return true;
}

static void refuse(struct driver *driver, const vs_notice *notice)
{
	const struct virtio_scsi_cmd_resp response = { .status = 2 };
	vs_completion completion = { .request = notice->request, .response_length = sizeof(response) };

	memcpy(completion.response, &response, sizeof(response));
	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	driver_run(driver);
}

static uint64_t header_of(struct driver *driver, const struct order *order)
{
	struct virtio_scsi_cmd_req header = { .lun = { 1, 0, 0x40, 0 }, .task_attr = order->attribute };
	uint64_t at = driver_allocate(driver, 0, sizeof(header), 1);

	memcpy(header.cdb, order->cdb.bytes, sizeof(header.cdb));
	driver_write(driver, at, &header, sizeof(header));
	return at;
}

static void tell(const struct order *order, const struct verdict *verdict)
{
	char cdb[3 * 16 + 1];

	for (uint32_t i = 0; i < 16; i++)
		snprintf(cdb + 3 * i, 4, "%02x ", order->cdb.bytes[i]);
	fail_msg("%sattribute %u, %u bytes out, %u in: should be %s", cdb, order->attribute, order->out, order->in,
		 verdict->served ? "served" : "left to Python");
}

/* One command, and all that must be true of its answer. */
static void play(struct driver *driver, const struct order *order)
{
	struct buffer buffers[2 + 2 * MOST_SEGMENTS] = { { header_of(driver, order), sizeof(struct virtio_scsi_cmd_req),
							   0 } };
	const struct verdict verdict = judge(order);
	struct vring_used_elem element;
	vs_notice notice;

	uint32_t outs = segments(driver, order->out, false, buffers + 1), at = 1 + outs;
	copy_out(driver, order, buffers + 1, outs);
	uint64_t response = new_response(driver);
	buffers[at++] = (struct buffer){ response, sizeof(struct virtio_scsi_cmd_resp), true };
	uint32_t ins = segments(driver, order->in, true, buffers + at);
	bool indirect = draw(2);
	driver_offer(driver, REQUEST,
		     indirect ? driver_indirect(driver, REQUEST, buffers, at + ins)
			      : driver_chain(driver, REQUEST, buffers, at + ins));
	driver_run(driver);
	bool noticed = driver_notice(driver, &notice);
	if (!noticed && driver->setup.io_uring)
		driver_wait(driver, REQUEST);
	if (noticed == verdict.served && !verdict.or_left)
		tell(order, &verdict);
	const uint8_t *bytes = verdict.served && order->in ? shadow + verdict.ranges[0].lba * BLOCK : NULL;
	assert_true(came(driver, buffers + at, ins, bytes));
	if (noticed)
		refuse(driver, &notice);
	else
		apply(order, &verdict);
	assert_true(driver_used(driver, REQUEST, &element));
	assert_int_equal(element.len, sizeof(struct virtio_scsi_cmd_resp) + (noticed ? 0 : order->in));
	const struct virtio_scsi_cmd_resp *answer = driver_host(driver, response);
	assert_int_equal(answer->status, noticed ? 2 : 0);
	(noticed ? left : served)[order->form - forms]++;
}

static void compare(const struct driver *driver)
{
	static uint8_t bytes[DISK_LENGTH];

	assert_int_equal(pread(driver->disk, bytes, sizeof(bytes), 0), sizeof(bytes));
	assert_memory_equal(bytes, shadow, sizeof(bytes));
}

static void a_drivers_life(unsigned long count)
{
	const enum medium media[] = { ON_MEMORY, ON_TMPFS, ON_DISK };
	enum medium medium = media[draw(COUNT(media))];
	struct setup setup = { .features = FEATURE(INDIRECT) | (draw(2) ? FEATURE(EVENT_IDX) : 0),
			       .regions = 2,
			       .apart = draw(2),
			       .io_uring = medium == ON_DISK };
	struct driver *driver = driver_with_disk(medium, setup);
	const uint64_t marks[] = { driver->regions[0].next, driver->regions[1].next };
	static struct order order;

	for (uint64_t i = 0; i < DISK_LENGTH; i++)
		shadow[i] = pattern(i);
	for (unsigned long i = 1; i <= count; i++) {
		driver->regions[0].next = marks[0], driver->regions[1].next = marks[1];
		draw_order(&order);
		play(driver, &order);
		if (i % COMPARED_EVERY == 0 || i == count)
			compare(driver);
	}
	driver_free(driver);
}

static void test_every_answer_is_what_the_bytes_say(void **unused)
{
	unsigned long long fast = 0, slow = 0;

	(void)unused;
	for (unsigned long done = 0, life; done < commands; done += life) {
		life = commands - done < A_DRIVERS_LIFE ? commands - done : A_DRIVERS_LIFE;
		state = seed * 1000003 + done;
		a_drivers_life(life);
	}
	for (uint32_t i = 0; i < COUNT(forms); i++) {
		printf("opcode %02x %10llu served %10llu left to Python\n", forms[i].opcode, served[i], left[i]);
		fast += served[i], slow += left[i];
		assert_true(commands < 1000 || (served[i] && left[i]));
	}
	printf("%llu commands on the fast path, %llu left to Python\n", fast, slow);
}

int main(int count, char **arguments)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_every_answer_is_what_the_bytes_say) };

	if (count != 3) {
		fprintf(stderr, "usage: fast_path SEED COMMANDS\n");
		return 64;
	}
	seed = strtoull(arguments[1], NULL, 0);
	commands = strtoul(arguments[2], NULL, 0);
	return cmocka_run_group_tests_name("fast path", tests, NULL, NULL);
}
