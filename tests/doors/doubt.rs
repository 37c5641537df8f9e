//! Entries that upstreams read in different ways, at each door of ext_authz (semantics 63).

use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;

use super::repeats::{Asked, Door, REPEATED, cookie, is_refused_as_repeated, once, query, start};
use crate::support::service::*;

#[tokio::test]
async fn semantics_63_what_only_some_upstreams_read_as_the_entry_is_refused() {
    let service = start(&once("", "")).await;
    for asked in [
        // Split at semicolons, as Rack 2 and Perl do.
        query("account=a;account=z1"),
        query("account=a;z1"),
        query("account=a&x;account=b"),
        query("x=1;account=a"),
        query(";account=a"),
        query("account=a;"),
        query("account=a&amp;account=b"),
        query("account=a&q=x;%61ccount"),
        // Brackets of PHP, Rack and qs.
        query("account[]=a"),
        query("account=a&account[]=b"),
        query("account=a&account%5B0%5D=b"),
        query("account=a&account[x][y]=b"),
        query("account=a&[account]=b"),
        query("account=a&account]=b"),
        // Names that PHP rewrites.
        query("account=a&+account=b"),
        query("account=a&%20%20account=b"),
        query("account=a&%09account=b"),
        query("account=a&account%00=b"),
        query("account=a&account%00[]x=b"),
        // Python unquotes these.
        cookie(&[r#"account="ab\143""#]),
        cookie(&[r#"account="ab\c""#]),
        cookie(&[r#"account=%22ab\143%22"#]),
        cookie(&[r#"a=b; account= "ab%5C143" "#]),
        cookie(&["account=a; account[]=b"]),
        cookie(&["account[0]=b"]),
        cookie(&["account=a; %61ccount=b"]),
        cookie(&["account=a; account%00=b"]),
        cookie(&["account=a; account%5B%5D=b"]),
    ] {
        is_refused_as_repeated(&asked, &service).await;
        let elsewhere = Asked { target: asked.target.replace("/login", "/page"), ..asked };
        for door in Door::ALL {
            assert_eq!(elsewhere.at(door, &service).await, (200, None), "{door:?} {elsewhere:?}");
        }
    }
    // Go does not end a query at a fragment. Behind Envoy's http_service a target has none.
    let fragment = query("a=b#&account=c");
    for door in Door::ALL.into_iter().filter(|door| *door != Door::Envoy) {
        let (status, reason) = fragment.at(door, &service).await;
        assert_eq!((status, reason.as_deref()), REPEATED, "{door:?}");
    }
}

#[tokio::test]
async fn semantics_63_what_every_upstream_reads_alike_passes() {
    let service = start(&once("", "")).await;
    for (n, door) in Door::ALL.into_iter().enumerate() {
        for (index, asked) in [
            query("q=a;b&account=N"),
            query("return=/x;y=1&account=N"),
            query("account=N&q=%3Baccount%3Db&filter[account]=c"),
            query("account=N&accounts[]=b&my.account=c&account_id[]=d&account%20=e"),
            query("account=N%3Ba#account=b"),
            cookie(&["account=s%3AN.Zm9v%2Bb%2Fw%3D"]),
            cookie(&["account=eyJpdiI6IkN%3D%3D-N"]),
            cookie(&["account=a+b/c==N"]),
            cookie(&[r#"account="N"; a="\143"; prefs[a]=b; accounts[]=c"#]),
            cookie(&[r"account=N\143"]),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("n{n}i{index}");
            let headers = asked.headers.iter().map(|(key, value)| (key.clone(), value.replace('N', &name)));
            let asked = Asked { target: asked.target.replace('N', &name), headers: headers.collect() };
            assert_eq!(asked.at(door, &service).await, (200, None), "{door:?} {asked:?}");
            assert_eq!(asked.at(door, &service).await.0, 429, "{door:?} {asked:?}");
        }
    }
}

#[tokio::test]
async fn semantics_63_all_spellings_of_a_cookie_have_one_counter() {
    let service = start(&once("", "")).await;
    let spellings =
        ["abcN", "ab%63N", "%61%62%63N", "ab%2563N", "ab%%363N", "\"abcN\"", "%22abcN%22", "\"ab%63N\"", "%20abcN%20"];
    for (n, door) in Door::ALL.into_iter().enumerate() {
        for (index, spelling) in spellings.into_iter().enumerate() {
            let expected = if index == 0 { 200 } else { 429 };
            let asked = cookie(&[&format!("a=b; account={}", spelling.replace('N', &n.to_string()))]);
            assert_eq!(asked.at(door, &service).await.0, expected, "{door:?} {asked:?}");
        }
        let other = cookie(&[&format!("account=abd{n}")]);
        assert_eq!(other.at(door, &service).await.0, 200, "{door:?}");
    }
}

#[tokio::test]
async fn semantics_63_first_last_and_join_count_the_pairs_with_exactly_the_name() {
    for word in ["first", "last", "join"] {
        let service = start(&once(&format!(", repeated = '{word}'"), "")).await;
        for door in Door::ALL {
            for (first, second) in [
                (query("account=DOOR&account[]=b"), query("account[]=c&account=DOOR&x=1;account=d")),
                (cookie(&["account=DOORc; account[]=b"]), cookie(&["account[]=c; account=DOORc"])),
            ] {
                for (asked, expected) in [(first, 200), (second, 429)] {
                    let replaced = |text: &str| text.replace("DOOR", &format!("{door:?}"));
                    let headers = asked.headers.iter().map(|(key, value)| (key.clone(), replaced(value))).collect();
                    let asked = Asked { target: replaced(&asked.target), headers };
                    assert_eq!(asked.at(door, &service).await.0, expected, "{word} {door:?} {asked:?}");
                }
            }
            // None has the name.
            for n in 0..3 {
                let asked = query(&format!("account[]={n}"));
                assert_eq!(asked.at(door, &service).await, (200, None), "{word} {door:?} {n}");
            }
        }
    }
}

/// The status of the answer to a request for a host, at each door.
async fn statuses(service: &Doors, host: &str) -> [u16; 4] {
    let mut statuses = [0; 4];
    let http = [
        format!("GET /authz/envoy/ HTTP/1.1\r\nhost: {host}"),
        format!("GET /authz/nginx HTTP/1.1\r\nhost: {host}\r\nx-original-method: GET\r\nx-original-uri: /"),
        format!(
            "GET /authz/forward HTTP/1.1\r\nhost: t\r\nx-forwarded-method: GET\r\nx-forwarded-uri: /\r\n\
             x-forwarded-host: {host}"
        ),
    ];
    for (status, head) in statuses.iter_mut().zip(http) {
        let answer = service.ask(&head).await;
        let intended = answer.header("x-tollgate-status").map(|status| status.parse().expect("a status"));
        *status = intended.unwrap_or(answer.status);
    }
    let mut check = Asked::new("/", &[]).check(Door::Raw);
    let request = check.attributes.as_mut().and_then(|attributes| attributes.request.as_mut());
    host.clone_into(&mut request.and_then(|request| request.http.as_mut()).expect("a request").host);
    let answer: CheckResponse = service.rls().await.call(CHECK, check).await.expect("never an error of gRPC");
    statuses[3] = match &answer.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => denied.status.as_ref().expect("a status").code as u16,
        _ => 200,
    };
    statuses
}

#[tokio::test]
async fn semantics_63_a_host_with_a_user_or_a_comma_does_not_slip_past_a_rule() {
    let service = start(
        "[authz]\ndomain = 'edge'\n\
         [[rules]]\ndomain = 'edge'\nname = 'admin'\nmatch = { host = 'admin.example.com' }\naction = 'deny'\n",
    )
    .await;
    for (host, expected) in [
        ("admin.example.com", 403),
        ("user@admin.example.com", 403),
        ("u:p@x@Admin.example.com.:443", 403),
        ("admin.example.com@h.example", 200),
        ("h.example", 200),
        ("h.example,admin.example.com", 400),
        ("admin.example.com, h.example", 400),
        ("h.example,b.example", 400),
        ("admin.example.com,admin.example.com:443", 403),
        ("h.example, H.example", 200),
    ] {
        assert_eq!(statuses(&service, host).await, [expected; 4], "{host}");
    }
}
