import java.nio.file.Files;
import java.nio.file.Path;
import org.neo4j.dbms.api.DatabaseManagementServiceBuilder;

/** A Neo4j that speaks Bolt on 127.0.0.1: Server FOLDER PORT. Says "ready" once it does; runs until it is killed. */
public final class Server {
    public static void main(String[] arguments) throws Exception {
        var folder = Path.of(arguments[0]);
        var address = "127.0.0.1:" + Integer.parseInt(arguments[1]);
        var settings = folder.resolve("server.conf");
        // Whole transaction logs would be 512 MiB of disk.
        Files.writeString(settings, String.join("\n",
                "server.bolt.enabled=true",
                "server.bolt.listen_address=" + address,
                "server.bolt.advertised_address=" + address,
                "server.default_listen_address=127.0.0.1",
                "server.memory.pagecache.size=64m",
                "dbms.security.auth_enabled=false",
                "dbms.usage_report.enabled=false",
                "db.tx_log.preallocate=false"));
        new DatabaseManagementServiceBuilder(folder).loadPropertiesFromFile(settings).build();
        System.out.println("ready");
        Thread.currentThread().join();
    }
}
