/* A process with QEMU's banner and a QMP socket that answers every question but the one that ends it. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

const char banner[] __attribute__((used)) = "QEMU emulator version 10.0.2 (fake)";

static const char *answer_to(const char *name)
{
    if (!strcmp(name, "query-status"))
        return "{\"running\": true, \"singlestep\": false, \"status\": \"running\"}";
    if (!strcmp(name, "query-version"))
        return "{\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 2}, \"package\": \"fake\"}";
    return strncmp(name, "query-", 6) ? "{}" : "[]";
}

/* Copy the JSON string after `key`. */
static int member(const char *line, const char *key, char *to, size_t room)
{
    const char *at = strstr(line, key), *end;
    if (!at || !(at = strchr(at + strlen(key), ':')) || !(at = strchr(at, '"')) || !(end = strchr(at + 1, '"')))
        return 0;
    snprintf(to, room, "%.*s", (int)(end - at - 1), at + 1);
    return 1;
}

/* Die a moment later, whatever is asked meanwhile. */
static void alarm_soon(void)
{
    struct itimerval soon = {.it_value = {.tv_usec = 300000}};
    signal(SIGALRM, (void (*)(int))abort);
    setitimer(ITIMER_REAL, &soon, NULL);
}

/* Read one JSON object: clients put nothing between two of them. Waits in poll(2), as a main loop does. */
static int question(int client, char *line, size_t room)
{
    size_t length = 0;
    int depth = 0;
    struct pollfd ready = {.fd = client, .events = POLLIN};
    while (length + 1 < room && poll(&ready, 1, -1) == 1 && read(client, line + length, 1) == 1) {
        char read = line[length++];
        depth += (read == '{') - (read == '}');
        line[length] = 0;
        if (read == '}' && !depth)
            return 1;
    }
    return 0;
}

/* Arguments: -qmp unix:PATH,server=on,wait=off -name QUESTION,before|after|exit */
int main(int count, char **words)
{
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    char deadly[64], line[65536], name[64], id[64], *how;
    int listening = socket(AF_UNIX, SOCK_STREAM, 0);
    if (count != 5)
        return 2;
    sscanf(words[2], "unix:%107[^,]", place.sun_path);
    snprintf(deadly, sizeof deadly, "%s", words[4]);
    how = strchr(deadly, ',');
    *how++ = 0;
    if (bind(listening, (struct sockaddr *)&place, sizeof place) || listen(listening, 1))
        return 3;
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        struct pollfd ready = {.fd = listening, .events = POLLIN};
        int client;
        poll(&ready, 1, -1);
        client = accept(listening, NULL, NULL);
        dprintf(client, "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 2},"
                        " \"package\": \"fake\"}, \"capabilities\": []}}\r\n");
        while (question(client, line, sizeof line)) {
            int now;
            if (!member(line, "\"execute\"", name, sizeof name) || !member(line, "\"id\"", id, sizeof id))
                continue;
            now = !strcmp(name, deadly);
            if (now && !strcmp(how, "before")) {
                fputs("aborting.c: visit_start_struct: Assertion `obj' failed.\n", stderr);
                abort();
            }
            if (now && !strcmp(how, "exit"))
                exit(0);
            dprintf(client, "{\"return\": %s, \"id\": \"%s\"}\r\n", answer_to(name), id);
            if (now && !strcmp(how, "after"))
                alarm_soon();
        }
        close(client);
    }
}
